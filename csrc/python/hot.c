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
    struct scheduler *scheduler; /* of a node under the virtual clock; owned */
} Requester;

/* Programs under the virtual clock: each is a greenlet, and whoever waits switches to whoever runs next. */
typedef struct scheduler {
    PyObject_HEAD
    fbx_sim *sim;
    PyObject *owner; /* keeps the simulation's memory */
    PyObject *programs; /* list: each one's switch() */
    PyObject *hub; /* the switch() of the greenlet that started them */
    PyObject *after; /* list: None, or what is called when that program goes on */
    PyObject *sites; /* dict: id of a code object -> its number, or None where it is the library's own */
    PyObject *site_of; /* callable(code): gives it a number */
    int lines;
} Scheduler;
static const struct fbx_hot_sim *simulation;
static int simulate(Requester *self, struct fbx_op *op);
static struct fbx_op *simulated_record(Requester *self, void **wide);

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
            PyErr_SetString(PyExc_RuntimeError, "a node under the virtual clock runs inside fabrex.sim.run");
            return -1;
        }
        PyObject *owner = self->owner; /* somebody may close and drop the node meanwhile */
        Py_XINCREF(owner);
        Py_BEGIN_ALLOW_THREADS
        status = hot->wait(node, op, SLICE_NS);
        Py_END_ALLOW_THREADS
        Py_XDECREF(owner);
        if (status == FBX_E_AGAIN && PyErr_CheckSignals()) {
            hot->forget(node, op); /* its record is on our stack */
            return -1;
        }
    }
    if (status) {
        fail(self, status);
        return -1;
    }
    return 0;
}

static inline int run(Requester *self, struct fbx_op *op)
{
    if (__builtin_expect(self->scheduler != NULL, 0))
        return simulate(self, op);
    return see_through(self, op, hot->begin(self->node, op));
}

#define NEED_NODE(self)                                                                                                \
    if (!(self)->node)                                                                                                 \
    return fail((self), FBX_E_CLOSED)

/* Where the operation is kept: on the stack; or, as a greenlet's stack moves, in its program's record. */
#define RECORD(self, name, wide_name)                                                                                  \
    struct fbx_op name##_here, *name = &name##_here;                                                                   \
    uint8_t wide_name##_here[64];                                                                                      \
    void *wide_name = wide_name##_here;                                                                                \
    if (__builtin_expect((self)->scheduler != NULL, 0) && !(name = simulated_record((self), &wide_name)))              \
        return NULL;

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
    RECORD(self, op, wide)
    if (!self->scheduler && hot->try_load(self->node, gva, o.size, &value) == 0)
        return PyLong_FromUnsignedLongLong(value);
    prepare(op, FBX_LOAD, gva, &o);
    if (o.size > 8 && o.size <= 64)
        op->buffer = wide;
    if (run(self, op))
        return NULL;
    if (o.size > 8)
        return PyBytes_FromStringAndSize((const char *)wide, o.size);
    return PyLong_FromUnsignedLongLong(op->operand[0]);
}

static PyObject *requester_store(Requester *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    struct options o;
    uint64_t gva, value = 0;
    if (parse("store", args, count, names, 2, &o) || as_u64(args[0], &gva))
        return NULL;
    NEED_NODE(self);
    RECORD(self, op, wide)
    if (o.size > 8 && o.size <= 64) {
        prepare(op, FBX_STORE, gva, &o);
        op->buffer = wide;
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
        if (!self->scheduler && !o.attr && !o.tc && !o.path && hot->try_store(self->node, gva, o.size, value) == 0)
            Py_RETURN_NONE;
        prepare(op, FBX_STORE, gva, &o);
        op->operand[0] = value;
    }
    if (run(self, op))
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
    RECORD(self, op, wide)
    (void)wide;
    if (!self->scheduler && kind == FBX_FETCH_ADD && !o.attr && !o.tc && !o.path &&
        hot->try_fetch_add(self->node, gva, o.size, value, &old) == 0)
        return PyLong_FromUnsignedLongLong(old);
    prepare(op, kind, gva, &o);
    op->operand[0] = value;
    if (run(self, op))
        return NULL;
    return PyLong_FromUnsignedLongLong(op->operand[0]);
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
    RECORD(self, op, wide)
    (void)wide;
    prepare(op, FBX_CAS, gva, &o);
    memset(op->operand, 0, sizeof op->operand);
    uint32_t width = o.size == 16 || o.size == 4 ? o.size : 8;
    if (as_bytes(args[1], width, &op->operand[0]) || as_bytes(args[2], width, &op->operand[2]))
        return NULL;
    if (run(self, op))
        return NULL;
    if (o.size == 16)
        return from_bytes(op->operand, 16);
    return PyLong_FromUnsignedLongLong(op->operand[0]);
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
    Py_XDECREF((PyObject *)self->scheduler);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* ---- programs under the virtual clock ---------------------------------------------------------------------------------- */

static struct fbx_op *simulated_record(Requester *self, void **wide)
{
    struct fbx_op *op = simulation->record(self->scheduler->sim, wide), none;
    if (!op && hot->nothing(self->node, &none, 0) == FBX_E_CLOSED)
        fail(self, FBX_E_CLOSED);
    else if (!op)
        PyErr_SetString(PyExc_RuntimeError, "under the virtual clock a node is used by its program in fabrex.sim.run, and not "
                                            "by other threads or after the run");
    return op;
}

/* Tell the trace which line of the program is at it: that of the innermost frame outside this library. */
static int note_line(Scheduler *s)
{
    PyFrameObject *frame = PyEval_GetFrame();
    Py_XINCREF((PyObject *)frame);
    while (frame) {
        PyObject *code = (PyObject *)PyFrame_GetCode(frame);
        PyObject *key = PyLong_FromVoidPtr(code), *number = key ? PyDict_GetItemWithError(s->sites, key) : NULL;
        Py_XINCREF(number);
        if (!number && key && !PyErr_Occurred())
            number = PyObject_CallFunctionObjArgs(s->site_of, code, NULL); /* keeps the code, too */
        Py_XDECREF(key);
        Py_DECREF(code);
        if (!number) {
            Py_DECREF((PyObject *)frame);
            return -1;
        }
        if (number != Py_None) {
            simulation->site(s->sim, (uint32_t)(PyLong_AsLong(number) << 16 | (PyFrame_GetLineNumber(frame) & 0xffff)));
            Py_DECREF(number);
            Py_DECREF((PyObject *)frame);
            return 0;
        }
        Py_DECREF(number);
        PyObject *back = PyObject_GetAttrString((PyObject *)frame, "f_back");
        Py_DECREF((PyObject *)frame);
        if (!back)
            return -1;
        if (back == Py_None) {
            Py_DECREF(back);
            break;
        }
        frame = (PyFrameObject *)back;
    }
    simulation->site(s->sim, 0);
    return 0;
}

/* The running program has said what it waits for: let others run until that has come. */
static int give_way(Scheduler *s, uint32_t me)
{
    int next;
    while ((next = simulation->next(s->sim)) == FBX_SIM_LOOK)
        if (PyErr_CheckSignals())
            return -1;
    if ((uint32_t)next == me)
        return 0;
    PyObject *target = s->hub;
    if (next >= 0)
        target = PyList_GetItem(s->programs, next);
    if (!target)
        return -1;
    Py_INCREF((PyObject *)s);
    PyObject *done = next >= 0 ? PyObject_CallObject(target, NULL) : PyObject_CallFunction(target, "i", next);
    if (done && PyList_GetItem(s->after, me) != Py_None) {
        Py_DECREF(done);
        done = PyObject_CallObject(PyList_GetItem(s->after, me), NULL);
    }
    Py_DECREF((PyObject *)s);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int simulate(Requester *self, struct fbx_op *op)
{
    Scheduler *s = self->scheduler;
    uint64_t value;
    if (s->lines && note_line(s))
        return -1;
    uint32_t me = simulation->current(s->sim);
    simulation->op(s->sim, self->node, op, simulation->begin(self->node, op));
    if (give_way(s, me))
        return -1;
    int status = simulation->result(s->sim, &value);
    if (status) {
        fail(self, status);
        return -1;
    }
    return 0;
}

static int running(Scheduler *s, uint32_t *me)
{
    *me = s->sim ? simulation->current(s->sim) : FBX_SIM_NOBODY;
    if (*me != FBX_SIM_NOBODY)
        return s->lines ? note_line(s) : 0;
    PyErr_SetString(PyExc_RuntimeError, "under the virtual clock only the programs of fabrex.sim.run wait");
    return -1;
}

/* What became of the wait: (status, value). */
static PyObject *outcome(Scheduler *s)
{
    uint64_t value;
    int status = simulation->result(s->sim, &value);
    return Py_BuildValue("iK", status, (unsigned long long)value);
}

static PyObject *scheduler_operation(Scheduler *s, PyObject *args)
{
    unsigned long long node, record;
    uint32_t me;
    if (!PyArg_ParseTuple(args, "KK", &node, &record) || running(s, &me))
        return NULL;
    struct fbx_op *op = (struct fbx_op *)(uintptr_t)record;
    fbx_node *n = (fbx_node *)(uintptr_t)node;
    simulation->op(s->sim, n, op, op->state == FBX_DONE ? op->status : FBX_E_AGAIN);
    if (give_way(s, me))
        return NULL;
    return outcome(s);
}

static PyObject *scheduler_begin(Scheduler *s, PyObject *args)
{
    unsigned long long node, record;
    uint32_t me;
    if (!PyArg_ParseTuple(args, "KK", &node, &record) || running(s, &me))
        return NULL;
    struct fbx_op *op = (struct fbx_op *)(uintptr_t)record;
    fbx_node *n = (fbx_node *)(uintptr_t)node;
    simulation->op(s->sim, n, op, simulation->begin(n, op));
    if (give_way(s, me))
        return NULL;
    return outcome(s);
}

static PyObject *scheduler_sleep_until(Scheduler *s, PyObject *args)
{
    unsigned long long until;
    uint32_t me;
    if (!PyArg_ParseTuple(args, "K", &until) || running(s, &me))
        return NULL;
    simulation->sleep(s->sim, until);
    if (give_way(s, me))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *scheduler_site(Scheduler *s, PyObject *ignored)
{
    (void)ignored;
    if (s->sim && s->lines && simulation->current(s->sim) != FBX_SIM_NOBODY && note_line(s))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *scheduler_point(Scheduler *s, PyObject *ignored)
{
    uint32_t me;
    (void)ignored;
    if (running(s, &me))
        return NULL;
    simulation->sleep(s->sim, simulation->now(s->sim));
    if (give_way(s, me))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *scheduler_wait_until(Scheduler *s, PyObject *args)
{
    unsigned long long node, gva, value, deadline;
    unsigned size;
    int compare;
    uint32_t me;
    if (!PyArg_ParseTuple(args, "KKIiKK", &node, &gva, &size, &compare, &value, &deadline) || running(s, &me))
        return NULL;
    simulation->wait_until(s->sim, (fbx_node *)(uintptr_t)node, gva, size, compare, value, deadline);
    if (give_way(s, me))
        return NULL;
    return outcome(s);
}

static PyObject *scheduler_watch(Scheduler *s, PyObject *args)
{
    unsigned long long node, which, deadline;
    int what;
    uint32_t me;
    if (!PyArg_ParseTuple(args, "KiKK", &node, &what, &which, &deadline) || running(s, &me))
        return NULL;
    simulation->watch(s->sim, (fbx_node *)(uintptr_t)node, what, which, deadline);
    if (give_way(s, me))
        return NULL;
    return outcome(s);
}

static PyObject *scheduler_exit(Scheduler *s, PyObject *ignored)
{
    (void)ignored;
    if (s->sim && simulation->current(s->sim) != FBX_SIM_NOBODY)
        simulation->exit(s->sim);
    Py_RETURN_NONE;
}

static PyObject *scheduler_next(Scheduler *s, PyObject *ignored)
{
    int next;
    (void)ignored;
    while ((next = simulation->next(s->sim)) == FBX_SIM_LOOK)
        if (PyErr_CheckSignals())
            return NULL;
    return PyLong_FromLong(next);
}

static PyObject *scheduler_current(Scheduler *s, PyObject *ignored)
{
    (void)ignored;
    uint32_t me = s->sim ? simulation->current(s->sim) : FBX_SIM_NOBODY;
    return PyLong_FromLong(me == FBX_SIM_NOBODY ? -1 : (long)me);
}

static PyObject *scheduler_start(Scheduler *s, PyObject *args)
{
    PyObject *programs, *after, *hub, *sites, *site_of;
    int lines;
    if (!PyArg_ParseTuple(args, "O!O!OO!Op", &PyList_Type, &programs, &PyList_Type, &after, &hub, &PyDict_Type, &sites, &site_of,
                          &lines))
        return NULL;
    PyObject *old[] = {s->programs, s->after, s->hub, s->sites, s->site_of};
    Py_INCREF(programs);
    Py_INCREF(after);
    Py_INCREF(hub);
    Py_INCREF(sites);
    Py_INCREF(site_of);
    s->programs = programs;
    s->after = after;
    s->hub = hub;
    s->sites = sites;
    s->site_of = site_of;
    s->lines = lines;
    for (unsigned i = 0; i < sizeof old / sizeof *old; i++)
        Py_XDECREF(old[i]);
    Py_RETURN_NONE;
}

static PyObject *scheduler_bind(Scheduler *s, PyObject *args)
{
    PyObject *owner;
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "KO", &address, &owner))
        return NULL;
    if (s->sim) {
        PyErr_SetString(PyExc_RuntimeError, "bound already");
        return NULL;
    }
    s->sim = (fbx_sim *)(uintptr_t)address;
    Py_INCREF(owner);
    s->owner = owner;
    Py_RETURN_NONE;
}

static void scheduler_dealloc(Scheduler *s)
{
    PyTypeObject *type = Py_TYPE((PyObject *)s);
    PyObject *held[] = {s->programs, s->after, s->hub, s->sites, s->site_of, s->owner};
    for (unsigned i = 0; i < sizeof held / sizeof *held; i++)
        Py_XDECREF(held[i]);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(s);
    Py_DECREF(type);
}

#define POINT(name, flags, doc) {#name, (PyCFunction)(void (*)(void))scheduler_##name, flags, doc}
static PyMethodDef scheduler_methods[] = {
    POINT(bind, METH_VARARGS, "bind($self, address, owner, /)\n--\n\n"),
    POINT(start, METH_VARARGS, "start($self, programs, after, hub, sites, site_of, lines, /)\n--\n\nWhose switch() is whose."),
    POINT(operation, METH_VARARGS, "operation($self, node, record, /)\n--\n\nSee an operation through that has begun: (status, 0)."),
    POINT(begin, METH_VARARGS, "begin($self, node, record, /)\n--\n\nBegin an operation and see it through: (status, 0)."),
    POINT(sleep_until, METH_VARARGS, "sleep_until($self, ps, /)\n--\n\nLet others run until then."),
    POINT(site, METH_NOARGS, "site($self, /)\n--\n\nNote the program's line: an operation follows that begins without one."),
    POINT(point, METH_NOARGS, "point($self, /)\n--\n\nLet others run whose turn it is."),
    POINT(wait_until, METH_VARARGS, "wait_until($self, node, gva, size, compare, value, deadline, /)\n--\n\n(status, value found)."),
    POINT(watch, METH_VARARGS, "watch($self, node, what, which, deadline, /)\n--\n\nWait for a change: (status, 0)."),
    POINT(exit, METH_NOARGS, "exit($self, /)\n--\n\nThe running program has ended."),
    POINT(next, METH_NOARGS, "next($self, /)\n--\n\nThe number of the program that runs now, or how all ended."),
    POINT(current, METH_NOARGS, "current($self, /)\n--\n\nThe number of the running program, or -1."),
    {NULL, NULL, 0, NULL},
};
static PyType_Slot scheduler_slots[] = {
    {Py_tp_dealloc, (void *)scheduler_dealloc},
    {Py_tp_methods, scheduler_methods},
    {Py_tp_doc, "Switches between the programs of one simulation."},
    {0, NULL},
};
static PyType_Spec scheduler_spec = {"fabrex._hot.Scheduler", sizeof(Scheduler), 0, Py_TPFLAGS_DEFAULT, scheduler_slots};

static PyObject *scheduler_type;
static PyObject *requester_schedule(Requester *self, PyObject *scheduler)
{
    if (!PyObject_TypeCheck(scheduler, (PyTypeObject *)scheduler_type)) {
        PyErr_SetString(PyExc_TypeError, "a Scheduler is wanted");
        return NULL;
    }
    Py_INCREF(scheduler);
    Py_XDECREF((PyObject *)self->scheduler);
    self->scheduler = (Scheduler *)scheduler;
    Py_RETURN_NONE;
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))requester_##name, METH_FASTCALL | METH_KEYWORDS, doc}
static PyMethodDef requester_methods[] = {
    FAST(load, "load($self, gva, /, size=8, *, ro=False, ido=False, tc=0, path=0)\n--\n\nRead `size` bytes at `gva`: an int up to 8 bytes, bytes above.\n\n"
               "Sizes are 1, 2, 4, 8, 16, 32 and 64, naturally aligned; values are little-endian and unsigned.\n"
               "Raises: AddressError, AlignmentError, LinkDown, PeerLost, CompleterAbort, CompletionTimeout, ClosedHandle.\n"
               "Timing: request, completer and completion; see fbx_load()."),
    FAST(store, "store($self, gva, value, /, size=8, *, ro=False, ido=False, tc=0, path=0)\n--\n\nWrite `value` at `gva` (posted MWr).\n\n"
                "Returns when the write has its place in the egress; it is visible at the peer at its arrival.\n"
                "Faults of the fabric do not raise: see flush(check=True). Raises: AddressError, AlignmentError,\n"
                "OverflowError, CompleterAbort, OutOfFabricMemory, ClosedHandle. See fbx_store()."),
    FAST(fetch_add, "fetch_add($self, gva, value, /, size=8, *, ro=False, ido=False, tc=0, path=0)\n--\n\nAdd (4 or 8 bytes, wrapping) and return the old value. See fbx_fetch_add()."),
    FAST(swap, "swap($self, gva, value, /, size=8, *, ro=False, ido=False, tc=0, path=0)\n--\n\nReplace (4 or 8 bytes) and return the old value. See fbx_swap_value()."),
    FAST(compare_swap, "compare_swap($self, gva, expected, desired, /, size=8, *, ro=False, ido=False, tc=0, path=0)\n--\n\nReplace if equal (4, 8 or 16 bytes); return the old value. See fbx_compare_swap()."),
    FAST(empty, "empty($self, *args, **kwargs)\n--\n\nDo nothing: the cost of a call, for benchmarks."),
    {"_dma_copy", (PyCFunction)(void (*)(void))requester_dma_copy, METH_FASTCALL | METH_KEYWORDS, "_dma_copy($self, dst, src, size, /)\n--\n\n"},
    {"_dma_release", (PyCFunction)(void (*)(void))requester_dma_release, METH_FASTCALL | METH_KEYWORDS, "_dma_release($self, number, /)\n--\n\n"},
    {"_nothing", (PyCFunction)(void (*)(void))requester_nothing, METH_FASTCALL | METH_KEYWORDS, "_nothing($self, ps, /, size=8)\n--\n\n"},
    {"_bind", (PyCFunction)(void (*)(void))requester_bind, METH_VARARGS, "_bind($self, address, owner, /)\n--\n\n"},
    {"_schedule", (PyCFunction)(void (*)(void))requester_schedule, METH_O, "_schedule($self, scheduler, /)\n--\n\n"},
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
    unsigned long long address, second;
    PyObject *handler;
    (void)module;
    if (!PyArg_ParseTuple(args, "KKO", &address, &second, &handler))
        return NULL;
    const struct fbx_hot *table = (const struct fbx_hot *)(uintptr_t)address;
    if (table->version != FBX_HOT_VERSION || table->op_bytes != sizeof(struct fbx_op)) {
        PyErr_SetString(PyExc_ImportError, "fabrex._hot and fabrex._core are of different builds; install fabrex again");
        return NULL;
    }
    hot = table;
    simulation = (const struct fbx_hot_sim *)(uintptr_t)second;
    Py_INCREF(handler);
    Py_XDECREF(raise_error);
    raise_error = handler;
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"bind", module_bind, METH_VARARGS, "bind(table, table_of_simulation, handler, /)\n--\n\nConnect to the core."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_hot", "Scalar fabric operations.", -1, module_methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__hot(void)
{
    PyObject *m = PyModule_Create(&module);
    PyObject *type = m ? PyType_FromSpec(&requester_spec) : NULL;
    PyObject *scheduler = m ? PyType_FromSpec(&scheduler_spec) : NULL;
    scheduler_type = scheduler;
    eight = PyLong_FromLong(8); /* one object in CPython; elsewhere the long way round */
    name_size = PyUnicode_InternFromString("size");
    name_ro = PyUnicode_InternFromString("ro");
    name_ido = PyUnicode_InternFromString("ido");
    name_tc = PyUnicode_InternFromString("tc");
    name_path = PyUnicode_InternFromString("path");
    if (!type || !eight || !name_size || !name_ro || !name_ido || !name_tc || !name_path || !scheduler ||
        PyModule_AddObject(m, "Requester", type) || PyModule_AddObject(m, "Scheduler", scheduler)) {
        Py_XDECREF(m);
        return NULL;
    }
    return m;
}
