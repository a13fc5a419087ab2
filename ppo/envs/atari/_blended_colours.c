/* Skips a table on which ALE spends 92 % of the time that a ROM takes to load.
 *
 * Every emulator of ALE computes the console's nearest colour to each of 64 x 64 x 64 mixtures of two colours: 33
 * million comparisons, 77 of the 84 ms that a ROM takes to load. Only the option `color_averaging` reads the table; it
 * is off by default and never used here. This library replaces the function that computes the table: the dynamic linker
 * takes the first definition that it finds, and blended_colours.py loads this library globally before ALE. It is not a
 * Python module.
 */

/* ale::PhosphorBlend::makeAveragePalette() */
void _ZN3ale13PhosphorBlend18makeAveragePaletteEv(void *blend);

void _ZN3ale13PhosphorBlend18makeAveragePaletteEv(void *blend)
{
    (void)blend;
}
