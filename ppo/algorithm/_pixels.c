/* Gathers the pixels of a minibatch as floats in one pass, where PyTorch takes two.
 *
 * ppo/algorithm/pixels.py documents `gather_pixels` and computes the same without compiled code.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* One build for all machines, with versions of the loop for machines with wider vectors. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_ALL_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_ALL_VECTORS
#endif

/* Bytes of the next row that are prefetched while this one is converted; the hardware prefetches the rest by itself. */
enum { CACHE_LINE = 64, AHEAD = 16 * CACHE_LINE };

FOR_ALL_VECTORS static void convert_row(float *restrict converted, const uint8_t *restrict row, Py_ssize_t width)
{
    for (Py_ssize_t x = 0; x < width; x++)
        converted[x] = row[x];
}

static void gather_pixels(float *gathered, const uint8_t *rows, const int64_t *indices, Py_ssize_t count,
                          Py_ssize_t width)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        if (i + 1 < count)
            for (Py_ssize_t x = 0; x < AHEAD && x < width; x += CACHE_LINE)
                __builtin_prefetch(rows + indices[i + 1] * width + x);
        convert_row(gathered + i * width, rows + indices[i] * width, width);
    }
}

/* The caller's arrays, held until `release`. */
typedef struct {
    Py_buffer views[3];
    int held;
} Arrays;

static void release(Arrays *arrays)
{
    while (arrays->held > 0)
        PyBuffer_Release(&arrays->views[--arrays->held]);
}

/* Hold one more array of this type ('f' float32, 'q' int64, 'B' uint8) and number of axes; NULL, with an exception set,
 * if the array does not fit. */
static Py_buffer *hold(Arrays *arrays, PyObject *array, char type, int axes, int writable)
{
    Py_buffer *view = &arrays->views[arrays->held];
    if (PyObject_GetBuffer(array, view, PyBUF_ND | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0)
        return NULL;
    arrays->held++;
    const char *format = view->format ? view->format : "B";
    const int is_it = type == 'q' ? (*format == 'q' || *format == 'l') && view->itemsize == 8 : *format == type;
    if (!is_it || view->ndim != axes) {
        PyErr_Format(PyExc_ValueError, "array %d must be %s of %d axes, got \"%s\" of %d", arrays->held,
                     type == 'f' ? "float32" : type == 'q' ? "int64" : "uint8", axes, format, view->ndim);
        return NULL;
    }
    return view;
}

static PyObject *gather_pixels_of_arrays(PyObject *Py_UNUSED(module), PyObject *const *objects, Py_ssize_t count)
{
    Arrays arrays = {.held = 0};
    PyObject *result = NULL;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "gather_pixels takes 3 arrays, got %zd", count);
    const Py_buffer *gathered = hold(&arrays, objects[0], 'f', 2, 1);
    const Py_buffer *rows = gathered ? hold(&arrays, objects[1], 'B', 2, 0) : NULL;
    const Py_buffer *indices = rows ? hold(&arrays, objects[2], 'q', 1, 0) : NULL;
    if (!indices)
        goto done;
    if (gathered->shape[0] != indices->shape[0] || gathered->shape[1] != rows->shape[1]) {
        PyErr_Format(PyExc_ValueError, "%zd rows of %zd pixels do not take %zd of %zd", gathered->shape[0],
                     gathered->shape[1], indices->shape[0], rows->shape[1]);
        goto done;
    }
    for (Py_ssize_t i = 0; i < indices->shape[0]; i++) {
        const int64_t index = ((const int64_t *)indices->buf)[i];
        if (index < 0 || index >= rows->shape[0]) {
            PyErr_Format(PyExc_IndexError, "index %lld is none of %zd rows", (long long)index, rows->shape[0]);
            goto done;
        }
    }
    gather_pixels(gathered->buf, rows->buf, indices->buf, indices->shape[0], rows->shape[1]);
    result = Py_NewRef(Py_None);
done:
    release(&arrays);
    return result;
}

static PyMethodDef methods[] = {
    {"gather_pixels", (PyCFunction)(void (*)(void))gather_pixels_of_arrays, METH_FASTCALL,
     "Fill (B, W) float32 with the rows (R, W) uint8 at indices (B,)."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "ppo.algorithm._pixels", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__pixels(void)
{
    return PyModule_Create(&module);
}
