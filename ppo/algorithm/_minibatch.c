/* What PyTorch does in many passes over a minibatch, in one: gathering pixels as floats, and the derivatives of PPO's
 * objective by what the network said.
 *
 * ppo/algorithm/rollout.py and objective.py say what they mean, and do it where this could not be compiled.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>

/* One build for all machines, with a version of the loop for those that have wider vectors. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_ALL_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_ALL_VECTORS
#endif

/* Bytes of the next row that are fetched while this one is converted; the processor finds the others by itself. */
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

typedef struct {
    double clip_range, value_clip_range, entropy_coefficient, value_coefficient, minibatch_size;
} Objective;

/* Write the derivatives by the logits of one sample over its log-probabilities. */
static void derive_by_logits(float *logits, Py_ssize_t num_actions, int64_t action, float old_log_prob, float advantage,
                             const Objective *objective)
{
    float largest = logits[0], sum = 0.0f, negative_entropy = 0.0f;
    for (Py_ssize_t a = 1; a < num_actions; a++)
        largest = fmaxf(largest, logits[a]);
    for (Py_ssize_t a = 0; a < num_actions; a++)
        sum += expf(logits[a] - largest);
    const float normaliser = largest + logf(sum);
    for (Py_ssize_t a = 0; a < num_actions; a++) {
        logits[a] -= normaliser;
        negative_entropy += expf(logits[a]) * logits[a];
    }
    const float lowest = (float)(1.0 - objective->clip_range), highest = (float)(1.0 + objective->clip_range);
    const float ratio = expf(logits[action] - old_log_prob);
    const float unclipped = ratio * advantage, clipped = fminf(fmaxf(ratio, lowest), highest) * advantage;
    const float by_log_prob = unclipped > clipped ? 0.0f : -unclipped;
    const float entropy_coefficient = (float)objective->entropy_coefficient, scale = (float)(1.0 / objective->minibatch_size);
    for (Py_ssize_t a = 0; a < num_actions; a++) {
        const float probability = expf(logits[a]), of_entropy = probability * (negative_entropy - logits[a]);
        logits[a] = scale * ((a == action) * by_log_prob - probability * by_log_prob - entropy_coefficient * of_entropy);
    }
}

static float derive_by_value(float value, float old_value, float target, const Objective *objective)
{
    const float error = value - target, change = value - old_value, range = (float)objective->value_clip_range;
    if (range >= 0.0f && fabsf(change) > range) {
        const float clipped_error = old_value + copysignf(range, change) - target;
        if (clipped_error * clipped_error > error * error)
            return 0.0f;
    }
    return error * (float)(objective->value_coefficient / objective->minibatch_size);
}

/* Arrays of the caller, held until `release`. */
typedef struct {
    Py_buffer views[8];
    int held;
} Arrays;

static void release(Arrays *arrays)
{
    while (arrays->held > 0)
        PyBuffer_Release(&arrays->views[--arrays->held]);
}

/* Hold one more array of a type ('f' float32, 'q' int64, 'B' uint8) and so many axes; NULL with an exception set. */
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

static PyObject *derivatives_of_arrays(PyObject *Py_UNUSED(module), PyObject *args)
{
    Arrays arrays = {.held = 0};
    PyObject *objects[7], *result = NULL;
    const Py_buffer *views[7];
    Objective objective;
    if (!PyArg_ParseTuple(args, "OOOOOOOddddd:derivatives", &objects[0], &objects[1], &objects[2], &objects[3],
                          &objects[4], &objects[5], &objects[6], &objective.clip_range, &objective.value_clip_range,
                          &objective.entropy_coefficient, &objective.value_coefficient, &objective.minibatch_size))
        return NULL;
    for (int k = 0; k < 7; k++) {
        views[k] = hold(&arrays, objects[k], k == 2 ? 'q' : 'f', k == 0 ? 2 : 1, k < 2);
        if (!views[k])
            goto done;
        if (views[k]->shape[0] != views[0]->shape[0]) {
            PyErr_Format(PyExc_ValueError, "array %d has %zd samples, the logits %zd", k + 1, views[k]->shape[0],
                         views[0]->shape[0]);
            goto done;
        }
    }
    float *logits = views[0]->buf, *values = views[1]->buf;
    const int64_t *actions = views[2]->buf;
    const float *log_probs = views[3]->buf, *old_values = views[4]->buf, *returns = views[5]->buf,
                *advantages = views[6]->buf;
    const Py_ssize_t num_samples = views[0]->shape[0], num_actions = views[0]->shape[1];
    for (Py_ssize_t i = 0; i < num_samples; i++)
        if (actions[i] < 0 || actions[i] >= num_actions) {
            PyErr_Format(PyExc_IndexError, "action %lld is none of %zd", (long long)actions[i], num_actions);
            goto done;
        }
    for (Py_ssize_t i = 0; i < num_samples; i++) {
        derive_by_logits(logits + i * num_actions, num_actions, actions[i], log_probs[i], advantages[i], &objective);
        values[i] = derive_by_value(values[i], old_values[i], returns[i], &objective);
    }
    result = Py_NewRef(Py_None);
done:
    release(&arrays);
    return result;
}

static PyMethodDef methods[] = {
    {"gather_pixels", (PyCFunction)(void (*)(void))gather_pixels_of_arrays, METH_FASTCALL,
     "Fill (B, W) float32 with the rows (R, W) uint8 at indices (B,)."},
    {"derivatives", derivatives_of_arrays, METH_VARARGS,
     "Replace logits (B, A) and values (B,) by the objective's derivatives by them; see ppo/algorithm/objective.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "ppo.algorithm._minibatch", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__minibatch(void)
{
    return PyModule_Create(&module);
}
