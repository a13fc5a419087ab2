/* What ALE spends 92 % of loading a ROM on, left out.
 *
 * Every emulator of ALE makes itself a table of the nearest colour of the console to each of 64 x 64 x 64 mixtures of two
 * colours: 33 million comparisons, 77 of the 84 ms that a ROM takes to load. Only its option `color_averaging` reads the
 * table, which is off unless it is switched on, and this program never does. The dynamic linker takes the first definition
 * of a function that it finds, and this library, which is no module of Python, is loaded for all to see before ALE is
 * (blended_colours.py).
 */

/* ale::PhosphorBlend::makeAveragePalette() */
void _ZN3ale13PhosphorBlend18makeAveragePaletteEv(void *blend);

void _ZN3ale13PhosphorBlend18makeAveragePaletteEv(void *blend)
{
    (void)blend;
}
