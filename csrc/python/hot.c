/* SPDX-License-Identifier: Apache-2.0
 *
 * The scalar operations of a node for Python: load, store, fetch_add, swap, compare_swap; and handing a plain copy to its DMA
 * engine. Calls that take some tens of
 * nanoseconds hold the GIL, because giving it up beside a busy thread costs milliseconds; waits of more than 20
 * microseconds release it and come back every 20 ms to look for signals. Limited API only (3.10); no copy of the core.
 */
#define PY_SSIZE_T_CLEAN
#include "Python.h"
#include "hot.h"

#define HOLD_PS 20000000u /* 20 us */
#define SLICE_NS 20000000u /* 20 ms */

typedef struct {
    PyObject_HEAD
    fbx_node *node;
    PyObject *owner; /* keeps the node's memory */
} Requester;

static const struct fbx_hot *hot;
static PyObject *raise_error; /* callable(code, requester): raises */
static PyObject *name_size, *name_ro, *name_ido, *name_tc, *name_path, *eight;

static int as_u64(PyObject *value, uint64_t *out)
{
    *out = PyLong_AsUnsignedLongLong(value);
    if (*out != UINT64_MAX)
        return 0;
    if (PyErr_Occurred() && !PyLong_Check(value)) {
        PyErr_Clear(); /* no int, but perhaps something that stands for one */
        PyObject *index = PyNumber_Index(value);
        if (!index)
            return -1;
        *out = PyLong_AsUnsignedLongLong(index);
        Py_DECREF(index);
    }
    return *out == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

/* Little-endian unsigned values wider than 64 bits. */
static int as_bytes(PyObject *value, uint32_t size, void *out)
{
    PyObject *index = PyNumber_Index(value), *bytes;
    if (!index)
        return -1;
    bytes = PyObject_CallMethod(index, "to_bytes", "Is", (unsigned)size, "little");
    Py_DECREF(index);
    if (!bytes)
        return -1;
    memcpy(out, PyBytes_AsString(bytes), size);
    Py_DECREF(bytes);
    return 0;
}

static PyObject *from_bytes(const void *data, uint32_t size)
{
    return PyObject_CallMethod((PyObject *)&PyLong_Type, "from_bytes", "y#s", data, (Py_ssize_t)size, "little");
}

static PyObject *fail(Requester *self, int code)
{
    PyObject *result = PyObject_CallFunction(raise_error, "iO", code, (PyObject *)self);
    if (result) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_SystemError, "the error handler returned");
    }
    return NULL;
}

struct options {
    uint32_t size;
    uint8_t attr, tc, path;
};

static int keyword(struct options *o, PyObject *name, PyObject *value)
{
    uint64_t number;
    if (name == name_size || PyUnicode_Compare(name, name_size) == 0) {
        if (as_u64(value, &number))
            return -1;
        o->size = number > 1u << 20 ? 1u << 20 : (uint32_t)number;
        return 0;
    }
    if (PyUnicode_Compare(name, name_ro) == 0 || PyUnicode_Compare(name, name_ido) == 0) {
        int yes = PyObject_IsTrue(value);
        if (yes < 0)
            return -1;
        if (yes)
            o->attr |= PyUnicode_Compare(name, name_ro) == 0 ? FBX_RO : FBX_IDO;
        return 0;
    }
    if (PyUnicode_Compare(name, name_path) == 0) {
        if (as_u64(value, &number))
            return -1;
        o->path = number > 255 ? 255 : (uint8_t)number; /* the core says which there are */
        return 0;
    }
    if (PyUnicode_Compare(name, name_tc) == 0) {
        if (as_u64(value, &number))
            return -1;
        if (number > 7) {
            PyErr_SetString(PyExc_ValueError, "tc: traffic classes are 0 to 7");
            return -1;
        }
        o->tc = (uint8_t)number;
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "unexpected keyword argument '%U'", name);
    return -1;
}

/* `wanted` positional arguments, then `size` by position or by name, then the ordering attributes by name. */
static int parse(const char *call, PyObject *const *args, Py_ssize_t count, PyObject *names, Py_ssize_t wanted,
                 struct options *o)
{
    o->size = 8;
    o->attr = o->tc = o->path = 0;
    if (count < wanted || count > wanted + 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd positional arguments, not %zd", call, wanted, wanted + 1, count);
        return -1;
    }
    if (count == wanted + 1) {
        uint64_t number;
        if (as_u64(args[wanted], &number))
            return -1;
        o->size = number > 1u << 20 ? 1u << 20 : (uint32_t)number;
    }
    if (names) {
        Py_ssize_t more = PyTuple_Size(names);
        for (Py_ssize_t i = 0; i < more; i++)
            if (keyword(o, PyTuple_GetItem(names, i), args[count + i]))
                return -1;
    }
    return 0;
}

static void prepare(struct fbx_op *op, int kind, uint64_t gva, const struct options *o)
{
    op->kind = (uint16_t)kind;
    op->gva = gva;
    op->bytes = o->size;
    op->buffer = NULL;
    op->tc = o->tc;
    op->attr = o->attr;
    op->path = o->path;
    op->trace_id = 0;
}

/* See an operation through that `status` says is under way. 0, or -1 with an exception. */
static int see_through(Requester *self, struct fbx_op *op, int status)
{
    fbx_node *node = self->node;
    while (status == FBX_E_AGAIN) {
        if (op->completes_ps <= op->issued_ps + HOLD_PS && op->next_ps <= op->issued_ps + HOLD_PS) {
            status = hot->wait(node, op, SLICE_NS);
            continue;
        }
        if (hot->node_virtual(node)) {
            PyErr_SetString(PyExc_RuntimeError, "a node under the virtual clock runs inside fabrex.sim");
            return -1;
        }
        PyObject *owner = self->owner; /* somebody may close and drop the node meanwhile */
        Py_XINCREF(owner);
        Py_BEGIN_ALLOW_THREADS
        status = hot->wait(node, op, SLICE_NS);
        Py_END_ALLOW_THREADS
        Py_XDECREF(owner);
        if (status == FBX_E_AGAIN && PyErr_CheckSignals())
            return -1;
    }
    if (status) {
        fail(self, status);
        return -1;
    }
    return 0;
}

static inline int run(Requester *self, struct fbx_op *op) { return see_through(self, op, hot->begin(self->node, op)); }

#define NEED_NODE(self)                                                                                                \
    if (!(self)->node)                                                                                                 \
    return fail((self), FBX_E_CLOSED)

/* Whether the keywords are `size` alone. The tuple of a call site is one object for ever: the last one seen is kept alive,
 * so that finding it again needs no look inside. */
static inline int only_size(PyObject *names)
{
    static PyObject *known;
    if (names == known)
        return 1;
    if (PyTuple_Size(names) != 1 || PyTuple_GetItem(names, 0) != name_size)
        return 0;
    Py_INCREF(names);
    Py_XDECREF(known);
    known = names;
    return 1;
}

static PyObject *requester_load(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    struct options o;
    uint64_t gva, value;
    if (count == 1 && !names) {
        o.size = 8;
        o.attr = o.tc = o.path = 0;
    } else if (count == 1 && args[1] == eight && only_size(names)) {
        o.size = 8;
        o.attr = o.tc = o.path = 0;
    } else if (count == 1 && only_size(names) && PyLong_CheckExact(args[1])) {
        long size = PyLong_AsLong(args[1]);
        if (size == -1)
            PyErr_Clear(); /* parse() says what is wrong with it */
        o.size = (uint32_t)size;
        o.attr = o.tc = o.path = 0;
        if ((size < 1 || size > 8) && parse("load", args, count, names, 1, &o))
            return NULL;
    } else if (parse("load", args, count, names, 1, &o)) {
        return NULL;
    }
    if (as_u64(args[0], &gva))
        return NULL;
    NEED_NODE(self);
    if (hot->try_load(self->node, gva, o.size, &value) == 0)
        return PyLong_FromUnsignedLongLong(value);
    struct fbx_op op;
    uint8_t wide[64];
    prepare(&op, FBX_LOAD, gva, &o);
    if (o.size > 8 && o.size <= 64)
        op.buffer = wide;
    if (run(self, &op))
        return NULL;
    if (o.size > 8)
        return PyBytes_FromStringAndSize((const char *)wide, o.size);
    return PyLong_FromUnsignedLongLong(op.operand[0]);
}

static PyObject *requester_store(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    struct options o;
    uint64_t gva, value = 0;
    if (parse("store", args, count, names, 2, &o) || as_u64(args[0], &gva))
        return NULL;
    NEED_NODE(self);
    struct fbx_op op;
    uint8_t wide[64];
    if (o.size > 8 && o.size <= 64) {
        prepare(&op, FBX_STORE, gva, &o);
        op.buffer = wide;
        if (PyBytes_Check(args[1]) && PyBytes_Size(args[1]) == (Py_ssize_t)o.size)
            memcpy(wide, PyBytes_AsString(args[1]), o.size);
        else if (as_bytes(args[1], o.size, wide))
            return NULL;
    } else {
        if (as_u64(args[1], &value))
            return NULL;
        if (o.size < 8 && o.size && value >> (8 * o.size)) {
            PyErr_Format(PyExc_OverflowError, "%llu does not fit %u bytes", (unsigned long long)value, o.size);
            return NULL;
        }
        if (!o.attr && !o.tc && !o.path && hot->try_store(self->node, gva, o.size, value) == 0)
            Py_RETURN_NONE;
        prepare(&op, FBX_STORE, gva, &o);
        op.operand[0] = value;
    }
    if (run(self, &op))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *atomic(Requester *self, int kind, const char *call, PyObject *const *args, Py_ssize_t count,
                        PyObject *names)
{
    struct options o;
    uint64_t gva, value, old;
    if (parse(call, args, count, names, 2, &o) || as_u64(args[0], &gva) || as_u64(args[1], &value))
        return NULL;
    NEED_NODE(self);
    if (o.size == 4 && value >> 32) {
        PyErr_Format(PyExc_OverflowError, "%llu does not fit 4 bytes", (unsigned long long)value);
        return NULL;
    }
    if (kind == FBX_FETCH_ADD && !o.attr && !o.tc && !o.path && hot->try_fetch_add(self->node, gva, o.size, value, &old) == 0)
        return PyLong_FromUnsignedLongLong(old);
    struct fbx_op op;
    prepare(&op, kind, gva, &o);
    op.operand[0] = value;
    if (run(self, &op))
        return NULL;
    return PyLong_FromUnsignedLongLong(op.operand[0]);
}

static PyObject *requester_fetch_add(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    return atomic(self, FBX_FETCH_ADD, "fetch_add", args, count, names);
}

static PyObject *requester_swap(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    return atomic(self, FBX_SWAP, "swap", args, count, names);
}

static PyObject *requester_compare_swap(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    struct options o;
    uint64_t gva;
    if (parse("compare_swap", args, count, names, 3, &o) || as_u64(args[0], &gva))
        return NULL;
    NEED_NODE(self);
    struct fbx_op op;
    prepare(&op, FBX_CAS, gva, &o);
    memset(op.operand, 0, sizeof op.operand);
    uint32_t width = o.size == 16 || o.size == 4 ? o.size : 8;
    if (as_bytes(args[1], width, &op.operand[0]) || as_bytes(args[2], width, &op.operand[2]))
        return NULL;
    if (run(self, &op))
        return NULL;
    if (o.size == 16)
        return from_bytes(op.operand, 16);
    return PyLong_FromUnsignedLongLong(op.operand[0]);
}

/* As long as a load of `ps` would take, with all that a load from Python costs: for calibration. */
static PyObject *requester_nothing(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    struct options o;
    uint64_t ps;
    if (parse("_nothing", args, count, names, 1, &o) || as_u64(args[0], &ps))
        return NULL;
    NEED_NODE(self);
    struct fbx_op op;
    prepare(&op, FBX_OTHER, 0, &o);
    if (see_through(self, &op, hot->nothing(self->node, &op, ps)))
        return NULL;
    return PyLong_FromUnsignedLongLong(op.completes_ps);
}

#define SHORT_DMA (64u << 10)

/* The number of a DMA, or None for what may take long here: the binding, which gives up the GIL, submits that. */
static PyObject *requester_dma_copy(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    struct fbx_dma d;
    uint64_t id;
    memset(&d, 0, sizeof d);
    if (count != 3 || names) {
        PyErr_SetString(PyExc_TypeError, "_dma_copy() takes 3 positional arguments");
        return NULL;
    }
    if (as_u64(args[0], &d.dst) || as_u64(args[1], &d.src) || as_u64(args[2], &d.bytes))
        return NULL;
    NEED_NODE(self);
    if (d.bytes > SHORT_DMA && hot->node_virtual(self->node))
        Py_RETURN_NONE;
    int status = hot->dma_submit(self->node, &d, &id);
    return status ? fail(self, status) : PyLong_FromUnsignedLongLong(id);
}

static PyObject *requester_dma_release(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    uint64_t id;
    if (count != 1 || names) {
        PyErr_SetString(PyExc_TypeError, "_dma_release() takes 1 positional argument");
        return NULL;
    }
    if (as_u64(args[0], &id))
        return NULL;
    if (self->node)
        hot->dma_release(self->node, id);
    Py_RETURN_NONE;
}

/* Takes arguments as the others do and does nothing: what a call costs here, for benchmarks to compare with. */
static PyObject *requester_empty(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    (void)self;
    (void)args;
    (void)count;
    (void)names;
    Py_RETURN_NONE;
}

static PyObject *requester_bind(Requester *self, PyObject *args)
{
    PyObject *owner;
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "KO", &address, &owner))
        return NULL;
    if (self->node) {
        PyErr_SetString(PyExc_RuntimeError, "bound already");
        return NULL;
    }
    self->node = (fbx_node *)(uintptr_t)address;
    Py_INCREF(owner);
    self->owner = owner;
    Py_RETURN_NONE;
}

static void requester_dealloc(Requester *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    self->node = NULL;
    Py_XDECREF(self->owner);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))requester_##name, METH_FASTCALL | METH_KEYWORDS, doc}
static PyMethodDef requester_methods[] = {
    FAST(load, "load($self, gva, /, size=8)\n--\n\nRead `size` bytes at `gva`: an int up to 8 bytes, bytes above.\n\n"
               "Sizes are 1, 2, 4, 8, 16, 32 and 64, naturally aligned; values are little-endian and unsigned.\n"
               "Raises: AddressError, AlignmentError, LinkDown, PeerLost, CompleterAbort, CompletionTimeout, ClosedHandle.\n"
               "Timing: request, completer and completion; see fbx_load()."),
    FAST(store, "store($self, gva, value, /, size=8, *, ro=False, ido=False, tc=0)\n--\n\nWrite `value` at `gva` (posted MWr).\n\n"
                "Returns when the write has its place in the egress; it is visible at the peer at its arrival.\n"
                "Faults of the fabric do not raise: see flush(check=True). Raises: AddressError, AlignmentError,\n"
                "OverflowError, CompleterAbort, OutOfFabricMemory, ClosedHandle. See fbx_store()."),
    FAST(fetch_add, "fetch_add($self, gva, value, /, size=8)\n--\n\nAdd (4 or 8 bytes, wrapping) and return the old value. See fbx_fetch_add()."),
    FAST(swap, "swap($self, gva, value, /, size=8)\n--\n\nReplace (4 or 8 bytes) and return the old value. See fbx_swap_value()."),
    FAST(compare_swap, "compare_swap($self, gva, expected, desired, /, size=8)\n--\n\nReplace if equal (4, 8 or 16 bytes); return the old value. See fbx_compare_swap()."),
    FAST(empty, "empty($self, *args, **kwargs)\n--\n\nDo nothing: the cost of a call, for benchmarks."),
    {"_dma_copy", (PyCFunction)(void (*)(void))requester_dma_copy, METH_FASTCALL | METH_KEYWORDS, "_dma_copy($self, dst, src, size, /)\n--\n\n"},
    {"_dma_release", (PyCFunction)(void (*)(void))requester_dma_release, METH_FASTCALL | METH_KEYWORDS, "_dma_release($self, number, /)\n--\n\n"},
    {"_nothing", (PyCFunction)(void (*)(void))requester_nothing, METH_FASTCALL | METH_KEYWORDS, "_nothing($self, ps, /, size=8)\n--\n\n"},
    {"_bind", (PyCFunction)(void (*)(void))requester_bind, METH_VARARGS, "_bind($self, address, owner, /)\n--\n\n"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot requester_slots[] = {
    {Py_tp_dealloc, (void *)requester_dealloc},
    {Py_tp_methods, requester_methods},
    {Py_tp_doc, "The scalar operations of one attached node; fabrex.Node adds the rest."},
    {0, NULL},
};
static PyType_Spec requester_spec = {"fabrex._hot.Requester", sizeof(Requester), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, requester_slots};

static PyObject *module_bind(PyObject *module, PyObject *args)
{
    unsigned long long address;
    PyObject *handler;
    (void)module;
    if (!PyArg_ParseTuple(args, "KO", &address, &handler))
        return NULL;
    const struct fbx_hot *table = (const struct fbx_hot *)(uintptr_t)address;
    if (table->version != FBX_HOT_VERSION || table->op_bytes != sizeof(struct fbx_op)) {
        PyErr_SetString(PyExc_ImportError, "fabrex._hot and fabrex._core are of different builds; install fabrex again");
        return NULL;
    }
    hot = table;
    Py_INCREF(handler);
    Py_XDECREF(raise_error);
    raise_error = handler;
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"bind", module_bind, METH_VARARGS, "bind(table, handler, /)\n--\n\nConnect to the core."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_hot", "Scalar fabric operations.", -1, module_methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__hot(void)
{
    PyObject *m = PyModule_Create(&module);
    PyObject *type = m ? PyType_FromSpec(&requester_spec) : NULL;
    eight = PyLong_FromLong(8); /* one object in CPython; elsewhere the long way round */
    name_size = PyUnicode_InternFromString("size");
    name_ro = PyUnicode_InternFromString("ro");
    name_ido = PyUnicode_InternFromString("ido");
    name_tc = PyUnicode_InternFromString("tc");
    name_path = PyUnicode_InternFromString("path");
    if (!type || !eight || !name_size || !name_ro || !name_ido || !name_tc || !name_path || PyModule_AddObject(m, "Requester", type)) {
        Py_XDECREF(m);
        return NULL;
    }
    return m;
}
