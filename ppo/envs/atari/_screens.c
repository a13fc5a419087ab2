/* Pools, resizes and pushes a game's last two screens onto its stack in one pass.
 *
 * The picture equals OpenCV's INTER_AREA of the pixelwise maximum of the two screens, bit for bit: the same products in
 * float, added in the same order (build with -ffp-contract=off), rounded to the nearest whole number, ties to even. Two
 * things make it fast. Screens hold palette indices, so greys are looked up only once, here. And most rows of an Atari
 * screen equal the row above, whose result is reused.
 *
 * ppo/envs/atari/screens.py documents `push_screens` and computes the same without compiled code.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* One build for all machines, with versions of each loop for machines with wider vectors. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_ALL_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_ALL_VECTORS
#endif

enum { MAX_PIXELS = 256, MAX_TAPS = 8, NUM_COLOURS = 256 };

/* How the pixels of one axis are averaged: output i is the sum over taps k of input starts[i] + k times weights[k][i]. */
typedef struct {
    int num_inputs, num_outputs, num_taps;
    int starts[MAX_PIXELS];
    float weights[MAX_TAPS][MAX_PIXELS];
} Axis;

/* Fill an axis like OpenCV's computeResizeAreaTab: inputs within a cell, and fractions of those that cross its ends. */
static void plan_axis(Axis *axis, int num_inputs, int num_outputs)
{
    const double scale = (double)num_inputs / num_outputs;
    memset(axis, 0, sizeof *axis);
    axis->num_inputs = num_inputs;
    axis->num_outputs = num_outputs;
    for (int i = 0; i < num_outputs; i++) {
        const double begin = i * scale, end = begin + scale, cell = fmin(scale, num_inputs - begin);
        const int last = (int)fmin(floor(end), num_inputs - 1), first = (int)fmin(ceil(begin), last);
        int taps = 0;
        axis->starts[i] = first;
        if (first - begin > 1e-3) {
            axis->starts[i] = first - 1;
            axis->weights[taps++][i] = (float)((first - begin) / cell);
        }
        for (int input = first; input < last; input++)
            axis->weights[taps++][i] = (float)(1.0 / cell);
        if (end - last > 1e-3)
            axis->weights[taps++][i] = (float)(fmin(fmin(end - last, 1.0), cell) / cell);
        if (taps > axis->num_taps)
            axis->num_taps = taps;
    }
}

/* Replace each pixel of `newer` with the lighter colour of the two screens. */
FOR_ALL_VECTORS static void pool_row(uint8_t *restrict newer, const uint8_t *restrict older,
                                     const float *restrict greys, int width)
{
    for (int x = 0; x < width; x++)
        newer[x] = greys[older[x]] > greys[newer[x]] ? older[x] : newer[x];
}

/* Shrink one row of colours to a row of greys. */
FOR_ALL_VECTORS static void shrink_row(float *restrict small, const uint8_t *restrict row, const float *restrict greys,
                                       const Axis *restrict columns)
{
    /* Taps of weight 0 may lie beyond the end of the row. */
    float pixels[MAX_PIXELS + MAX_TAPS] = {0};
    for (int x = 0; x < columns->num_inputs; x++)
        pixels[x] = greys[row[x]];
    for (int x = 0; x < columns->num_outputs; x++)
        small[x] = pixels[columns->starts[x]] * columns->weights[0][x];
    for (int k = 1; k < columns->num_taps; k++)
        for (int x = 0; x < columns->num_outputs; x++)
            small[x] += pixels[columns->starts[x] + k] * columns->weights[k][x];
}

/* Average rows of greys into row `y` of the picture. */
FOR_ALL_VECTORS static void blend_rows(uint8_t *restrict picture, float *const *rows, const Axis *restrict vertical,
                                       int y, int size)
{
    float sums[MAX_PIXELS];
    for (int x = 0; x < size; x++)
        sums[x] = rows[0][x] * vertical->weights[0][y];
    for (int k = 1; k < vertical->num_taps; k++)
        for (int x = 0; x < size; x++)
            sums[x] += rows[k][x] * vertical->weights[k][y];
    for (int x = 0; x < size; x++) {
        /* Floats of 2^23 and above are whole numbers, so the addition rounds; the low bits are the result. */
        const float rounded = sums[x] + 8388608.0f;
        uint32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        picture[x] = (uint8_t)bits;
    }
}

/* Push a row of the newest picture onto a row of stacked pixels. */
FOR_ALL_VECTORS static void push_row(uint8_t *restrict stack, const uint8_t *restrict picture, int size, int depth)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (depth == 4) {
        uint32_t words[MAX_PIXELS];
        memcpy(words, stack, 4 * (size_t)size);
        for (int x = 0; x < size; x++)
            words[x] = words[x] >> 8 | (uint32_t)picture[x] << 24;
        memcpy(stack, words, 4 * (size_t)size);
        return;
    }
#endif
    for (int x = 0; x < size; x++, stack += depth) {
        memmove(stack, stack + 1, depth - 1);
        stack[depth - 1] = picture[x];
    }
}

static void push_screens(uint8_t *stack, int size, int depth, uint8_t *screens, int height, int width,
                         const uint8_t *greys_of_colours)
{
    /* Kept between calls, which the GIL serialises. All games of a job have screens of the same size. */
    static Axis columns, vertical;
    static float small[MAX_PIXELS][MAX_PIXELS];
    float greys[NUM_COLOURS];
    float *rows[MAX_PIXELS + MAX_TAPS];
    uint8_t picture[MAX_PIXELS];

    if (columns.num_inputs != width || columns.num_outputs != size)
        plan_axis(&columns, width, size);
    if (vertical.num_inputs != height || vertical.num_outputs != size)
        plan_axis(&vertical, height, size);
    for (int colour = 0; colour < NUM_COLOURS; colour++)
        greys[colour] = greys_of_colours[colour];

    const uint8_t *older = screens + (size_t)height * width;
    int distinct = 0;
    for (int y = 0; y < height; y++) {
        uint8_t *row = screens + (size_t)y * width;
        if (memcmp(row, older + (size_t)y * width, width) != 0)
            pool_row(row, older + (size_t)y * width, greys, width);
        if (y > 0 && memcmp(row, row - width, width) == 0) {
            rows[y] = rows[y - 1];
        } else {
            rows[y] = small[distinct++];
            shrink_row(rows[y], row, greys, &columns);
        }
    }
    for (int k = 0; k < MAX_TAPS; k++)
        rows[height + k] = rows[height - 1];
    for (int y = 0; y < size; y++) {
        blend_rows(picture, rows + vertical.starts[y], &vertical, y, size);
        push_row(stack + (size_t)y * size * depth, picture, size, depth);
    }
}

/* OpenCV rounds differently if a side is an integer multiple of the picture's. */
static bool fits(Py_ssize_t source, Py_ssize_t size)
{
    return size >= 1 && source > size && source % size != 0 && source <= MAX_PIXELS && source <= (MAX_TAPS - 2) * size;
}

static PyObject *push_screens_of_arrays(PyObject *Py_UNUSED(module), PyObject *const *arrays, Py_ssize_t count)
{
    static const int flags[3] = {PyBUF_ND | PyBUF_WRITABLE, PyBUF_ND | PyBUF_WRITABLE, PyBUF_ND};
    static const int axes[3] = {3, 3, 1};
    Py_buffer views[3];
    PyObject *result = NULL;
    int held = 0;

    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "push_screens takes 3 arrays, got %zd", count);
        return NULL;
    }
    for (; held < 3; held++) {
        if (PyObject_GetBuffer(arrays[held], &views[held], flags[held]) != 0)
            goto done;
        if (views[held].ndim != axes[held] || views[held].itemsize != 1) {
            held++;
            PyErr_SetString(PyExc_ValueError, "push_screens takes bytes: a stack (S, S, C), screens (2, H, W), greys (256)");
            goto done;
        }
    }
    const Py_ssize_t *stack = views[0].shape, *screens = views[1].shape;
    if (stack[0] != stack[1] || stack[2] < 1 || stack[2] > 255 || screens[0] != 2 || views[2].shape[0] != NUM_COLOURS
        || !fits(screens[1], stack[0]) || !fits(screens[2], stack[0])) {
        PyErr_Format(PyExc_ValueError,
                     "push_screens takes a stack (S, S, C), screens (2, H, W) of up to %d pixels a side, larger than S "
                     "and up to %d times but no multiple, and greys (256), got (%zd, %zd, %zd), (%zd, %zd, %zd) and (%zd)",
                     MAX_PIXELS, MAX_TAPS - 2, stack[0], stack[1], stack[2], screens[0], screens[1], screens[2],
                     views[2].shape[0]);
        goto done;
    }
    push_screens(views[0].buf, (int)stack[0], (int)stack[2], views[1].buf, (int)screens[1], (int)screens[2],
                 views[2].buf);
    result = Py_NewRef(Py_None);
done:
    while (held > 0)
        PyBuffer_Release(&views[--held]);
    return result;
}

static PyMethodDef methods[] = {
    {"push_screens", (PyCFunction)(void (*)(void))push_screens_of_arrays, METH_FASTCALL,
     "Push a game's last two screens onto a stack; see ppo/envs/atari/screens.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "ppo.envs.atari._screens", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__screens(void)
{
    return PyModule_Create(&module);
}
