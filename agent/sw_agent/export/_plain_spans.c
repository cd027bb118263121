/* Spans that have attributes only, no events, links or words on their status, and of attributes only texts, numbers and
   truth values, as nearly all spans: looked through for secrets, and encoded for OTLP, without an object of Python's for
   each step.

   That is most of what the worker does, and the program's own threads wait meanwhile. What is of another kind, also of
   a subclass, is left to `redaction.py` and `encoding.py`, which do the same for all spans. So no code of the program's
   is called here, and no dict changes while it is gone through. What a span begins with is looked at here, too. */

#ifndef Py_GIL_DISABLED /* which has no stable ABI */
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <stdint.h>
#include <string.h>

#ifdef Py_GIL_DISABLED /* another thread may change a dict while it is gone through, but not while it is copied */
#define OWN(dict) PyDict_Copy(dict)
#else
#define OWN(dict) Py_NewRef(dict)
#endif

/* What a function here finds. Where it is NO there may be an exception, which says no more; FAILED is one. */
typedef enum { FAILED = -1, NO, YES } Found;

/* The SDK's own fields: of a span, of its attributes, of its status, of a member of an enumeration. */
enum { CONTEXT, PARENT, NAME, KIND, START, END, ATTRIBUTES, EVENTS, LINKS, STATUS, OF_SPAN };
enum { RESOURCE = OF_SPAN, SCOPE, DICT, DROPPED, CODE, DESCRIPTION, VALUE, FIELDS };

static const char *const NAMES[FIELDS] = {
    "_context", "_parent", "_name", "_kind", "_start_time", "_end_time", "_attributes", "_events", "_links", "_status",
    "_resource", "_instrumentation_scope", "_dict", "dropped", "_status_code", "_description", "_value_",
};

/* The places of its parts in the tuple that a SpanContext is. */
enum { TRACE_ID, SPAN_ID, IS_REMOTE, TRACE_STATE = 4, PARTS = 6 };

typedef struct {
    PyObject *names[FIELDS];
    PyObject *bits; /* 64: half of a trace id */
} State;

/* Bytes that grow */

enum { ROOM = 4096 }; /* enough for most spans */

typedef struct {
    unsigned char *start, *lent; /* where they are now; where they began, which is the caller's */
    size_t size, used;
} Bytes;

static Found
reserve(Bytes *bytes, size_t count)
{
    size_t size = 2 * bytes->size + count;
    unsigned char *larger;
    if (count <= bytes->size - bytes->used) {
        return YES;
    }
    larger = PyMem_Realloc(bytes->start == bytes->lent ? NULL : bytes->start, size);
    if (larger == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    if (bytes->start == bytes->lent) {
        memcpy(larger, bytes->lent, bytes->used);
    }
    bytes->start = larger;
    bytes->size = size;
    return YES;
}

static void
release(Bytes *bytes)
{
    if (bytes->start != bytes->lent) {
        PyMem_Free(bytes->start);
    }
}

static void
put(Bytes *bytes, const void *content, size_t length)
{
    memcpy(bytes->start + bytes->used, content, length);
    bytes->used += length;
}

static void
put_byte(Bytes *bytes, int byte)
{
    bytes->start[bytes->used++] = (unsigned char)byte;
}

/* Protocol buffers: https://protobuf.dev/programming-guides/encoding/ */

static size_t
length_of_varint(uint64_t number)
{
    size_t length = 1;
    while (number >>= 7) {
        length++;
    }
    return length;
}

static void
put_varint(Bytes *bytes, uint64_t number)
{
    for (; number > 0x7f; number >>= 7) {
        put_byte(bytes, (int)(number & 0x7f) | 0x80);
    }
    put_byte(bytes, (int)number);
}

static void
put_fixed64(Bytes *bytes, uint64_t number)
{
    for (int shift = 0; shift < 64; shift += 8) {
        put_byte(bytes, (int)(number >> shift & 0xff));
    }
}

static size_t
length_of_field(size_t length)
{
    return 1 + length_of_varint(length) + length;
}

static void
put_field(Bytes *bytes, int tag, const void *content, size_t length)
{
    put_byte(bytes, tag);
    put_varint(bytes, length);
    put(bytes, content, length);
}

/* Parts of messages. Each is appended whole, or not at all: then it is not plain. */

static Found
put_text(Bytes *bytes, int tag, PyObject *text)
{
    Py_ssize_t length;
    const char *utf8 = PyUnicode_CheckExact(text) ? PyUnicode_AsUTF8AndSize(text, &length) : NULL;
    if (utf8 == NULL) {
        return NO; /* or lone surrogates */
    }
    if (length == 0) {
        return YES;
    }
    if (reserve(bytes, length_of_field((size_t)length)) == FAILED) {
        return FAILED;
    }
    put_field(bytes, tag, utf8, (size_t)length);
    return YES;
}

static Found
unsigned_of(PyObject *number, uint64_t *found)
{
    if (!PyLong_CheckExact(number)) {
        return NO;
    }
    *found = PyLong_AsUnsignedLongLong(number);
    return *found == (uint64_t)-1 && PyErr_Occurred() ? NO : YES;
}

static Found
put_time(Bytes *bytes, int tag, PyObject *nanoseconds)
{
    uint64_t number;
    if (unsigned_of(nanoseconds, &number) != YES) {
        return NO;
    }
    if (reserve(bytes, 9) == FAILED) {
        return FAILED;
    }
    if (number) {
        put_byte(bytes, tag);
        put_fixed64(bytes, number);
    }
    return YES;
}

static void
put_big_endian(Bytes *bytes, uint64_t number)
{
    for (int shift = 56; shift >= 0; shift -= 8) {
        put_byte(bytes, (int)(number >> shift & 0xff));
    }
}

static Found
put_span_id(Bytes *bytes, int tag, PyObject *id)
{
    uint64_t number;
    if (unsigned_of(id, &number) != YES) {
        return NO;
    }
    if (reserve(bytes, 10) == FAILED) {
        return FAILED;
    }
    put_byte(bytes, tag);
    put_byte(bytes, 8);
    put_big_endian(bytes, number);
    return YES;
}

static Found
put_trace_id(Bytes *bytes, int tag, PyObject *id, const State *state)
{
    PyObject *upper = PyLong_CheckExact(id) ? PyNumber_Rshift(id, state->bits) : NULL;
    uint64_t upper_half;
    Found found = upper != NULL ? unsigned_of(upper, &upper_half) : NO;
    Py_XDECREF(upper);
    if (found == YES && (found = reserve(bytes, 18)) == YES) {
        put_byte(bytes, tag);
        put_byte(bytes, 16);
        put_big_endian(bytes, upper_half);
        put_big_endian(bytes, PyLong_AsUnsignedLongLongMask(id));
    }
    return found;
}

/* KeyValue and AnyValue, of common/v1 of https://github.com/open-telemetry/opentelemetry-proto */
static Found
put_attribute(Bytes *bytes, int tag, PyObject *key, PyObject *value)
{
    enum { KEY = 0x0a, VALUE_OF_KEY = 0x12, TEXT = 0x0a, TRUTH = 0x10, INTEGER = 0x18, DOUBLE = 0x21 };
    Py_ssize_t key_length, text_length = 0;
    const char *key_text, *text = NULL;
    uint64_t number = 0;
    size_t length, value_length;
    int kind;
    if (!PyUnicode_CheckExact(key) || (key_text = PyUnicode_AsUTF8AndSize(key, &key_length)) == NULL) {
        return NO;
    }
    if (PyUnicode_CheckExact(value)) {
        if ((text = PyUnicode_AsUTF8AndSize(value, &text_length)) == NULL) {
            return NO;
        }
        kind = TEXT;
        value_length = length_of_field((size_t)text_length);
    } else if (PyBool_Check(value)) {
        kind = TRUTH;
        number = value == Py_True;
        value_length = 2;
    } else if (PyLong_CheckExact(value)) {
        int overflow;
        number = (uint64_t)PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) {
            return NO;
        }
        kind = INTEGER;
        value_length = 1 + length_of_varint(number);
    } else if (PyFloat_CheckExact(value)) {
        double real = PyFloat_AsDouble(value);
        memcpy(&number, &real, sizeof number);
        kind = DOUBLE;
        value_length = 1 + sizeof number;
    } else {
        return NO;
    }
    length = (key_length ? length_of_field((size_t)key_length) : 0) + length_of_field(value_length);
    if (reserve(bytes, length_of_field(length)) == FAILED) {
        return FAILED;
    }
    put_byte(bytes, tag);
    put_varint(bytes, length);
    if (key_length) {
        put_field(bytes, KEY, key_text, (size_t)key_length);
    }
    put_byte(bytes, VALUE_OF_KEY);
    put_varint(bytes, value_length);
    if (kind == TEXT) {
        put_field(bytes, TEXT, text, (size_t)text_length);
        return YES;
    }
    put_byte(bytes, kind);
    if (kind == DOUBLE) {
        put_fixed64(bytes, number);
    } else {
        put_varint(bytes, number);
    }
    return YES;
}

/* What the SDK's objects hold */

static Found
value_of(PyObject *member, const State *state, uint64_t *found)
{
    PyObject *value = PyObject_GetAttr(member, state->names[VALUE]);
    Found plain = value != NULL ? unsigned_of(value, found) : NO;
    Py_XDECREF(value);
    return plain == YES && *found < 0x7f ? YES : NO;
}

/* Return the dict of a span's attributes, a new reference; NULL where it is none, or some were dropped. */
static PyObject *
dict_of(PyObject *attributes, const State *state)
{
    PyObject *dict = NULL, *dropped;
    uint64_t count;
    if (PyDict_CheckExact(attributes)) {
        return OWN(attributes);
    }
    dropped = PyObject_GetAttr(attributes, state->names[DROPPED]);
    if (dropped != NULL && unsigned_of(dropped, &count) == YES && count == 0) {
        PyObject *found = PyObject_GetAttr(attributes, state->names[DICT]);
        dict = found != NULL && PyDict_CheckExact(found) ? OWN(found) : NULL;
        Py_XDECREF(found);
    }
    Py_XDECREF(dropped);
    return dict;
}

static Found
is_empty(PyObject *events_or_links)
{
    return PyTuple_CheckExact(events_or_links) && PyTuple_Size(events_or_links) == 0 ? YES : NO;
}

/* Get the fields of a span, each a new reference or NULL; say whether all are there, and it has attributes only. */
static Found
get_fields(PyObject *span, const State *state, PyObject *fields[OF_SPAN])
{
    memset(fields, 0, OF_SPAN * sizeof *fields);
    for (int field = 0; field < OF_SPAN; field++) {
        if ((fields[field] = PyObject_GetAttr(span, state->names[field])) == NULL) {
            return NO;
        }
    }
    return is_empty(fields[EVENTS]) == YES && is_empty(fields[LINKS]) == YES ? YES : NO;
}

static void
drop_fields(PyObject *fields[OF_SPAN])
{
    for (int field = 0; field < OF_SPAN; field++) {
        Py_XDECREF(fields[field]);
    }
}

/* Encoding: Span and Status, of trace/v1 */

static Found
is_context(PyObject *context)
{
    return PyTuple_Check(context) && PyTuple_Size(context) == PARTS ? YES : NO;
}

static Found
put_context(Bytes *bytes, PyObject *context, const State *state)
{
    PyObject *trace_state;
    Found plain = is_context(context);
    if (plain != YES) {
        return plain;
    }
    trace_state = PyTuple_GetItem(context, TRACE_STATE);
    if (trace_state != Py_None && PyObject_Size(trace_state) != 0) {
        return NO;
    }
    plain = put_trace_id(bytes, 0x0a, PyTuple_GetItem(context, TRACE_ID), state);
    return plain == YES ? put_span_id(bytes, 0x12, PyTuple_GetItem(context, SPAN_ID)) : plain;
}

static Found
put_attributes(Bytes *bytes, PyObject *attributes, const State *state)
{
    PyObject *dict = dict_of(attributes, state), *key, *value;
    Py_ssize_t place = 0;
    Found plain = dict != NULL ? YES : NO;
    while (plain == YES && PyDict_Next(dict, &place, &key, &value)) {
        plain = put_attribute(bytes, 0x4a, key, value);
    }
    Py_XDECREF(dict);
    return plain;
}

static Found
put_status(Bytes *bytes, PyObject *status, const State *state)
{
    PyObject *code = PyObject_GetAttr(status, state->names[CODE]);
    PyObject *description = PyObject_GetAttr(status, state->names[DESCRIPTION]);
    uint64_t number = 0;
    Found plain = code != NULL && description == Py_None ? value_of(code, state, &number) : NO;
    if (plain == YES && (plain = reserve(bytes, 4)) == YES) {
        put_byte(bytes, 0x7a);
        put_byte(bytes, number ? 2 : 0);
        if (number) {
            put_byte(bytes, 0x18);
            put_varint(bytes, number);
        }
    }
    Py_XDECREF(code);
    Py_XDECREF(description);
    return plain;
}

static Found
put_span(Bytes *bytes, PyObject *fields[OF_SPAN], const State *state)
{
    /* Flags say that it is known whether the parent is of another process; and whether it is. */
    static const unsigned char local_parent[] = {0x85, 1, 0, 1, 0, 0}, remote_parent[] = {0x85, 1, 0, 3, 0, 0};
    PyObject *parent = fields[PARENT], *is_remote = Py_False;
    uint64_t kind;
    Found plain = put_context(bytes, fields[CONTEXT], state);
    if (plain == YES && parent != Py_None && (plain = is_context(parent)) == YES) {
        is_remote = PyTuple_GetItem(parent, IS_REMOTE);
        plain = PyBool_Check(is_remote) ? put_span_id(bytes, 0x22, PyTuple_GetItem(parent, SPAN_ID)) : NO;
    }
    if (plain == YES && (plain = put_text(bytes, 0x2a, fields[NAME])) == YES
        && (plain = value_of(fields[KIND], state, &kind)) == YES && (plain = reserve(bytes, 2)) == YES) {
        put_byte(bytes, 0x30);
        put_varint(bytes, kind + 1);
        plain = put_time(bytes, 0x39, fields[START]);
    }
    if (plain == YES && (plain = put_time(bytes, 0x41, fields[END])) == YES
        && (plain = put_attributes(bytes, fields[ATTRIBUTES], state)) == YES
        && (plain = put_status(bytes, fields[STATUS], state)) == YES) {
        plain = reserve(bytes, sizeof local_parent);
    }
    if (plain == YES) {
        put(bytes, is_remote == Py_True ? remote_parent : local_parent, sizeof local_parent);
    }
    return plain;
}

static PyObject *
encode(PyObject *module, PyObject *span)
{
    const State *state = PyModule_GetState(module);
    unsigned char room[ROOM];
    Bytes content = {room, room, ROOM, 0};
    PyObject *fields[OF_SPAN], *result = NULL;
    Found plain = get_fields(span, state, fields);
    if (plain == YES) {
        plain = put_span(&content, fields, state);
    }
    drop_fields(fields);
    if (plain == YES) {
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length_of_field(content.used));
        if (result != NULL) {
            Bytes field = {.start = (unsigned char *)PyBytes_AsString(result)};
            put_field(&field, 0x12, content.start, content.used);
        }
    } else if (plain == NO) {
        PyErr_Clear();
        result = Py_NewRef(Py_None);
    }
    release(&content);
    return result;
}

/* Secrets */

/* What is known to hold none; nothing yet is an empty tuple. */
enum { KNOWN_RESOURCE, KNOWN_SCOPE, KEYS, TEXTS, TYPES, OF_KNOWN };

static Found
is_known_attribute(PyObject *key, PyObject *value, PyObject *keys, PyObject *texts, PyObject *types)
{
    Found known = PyUnicode_CheckExact(key) ? (Found)PySet_Contains(keys, key) : NO;
    if (known != YES) {
        return known;
    }
    if (PyUnicode_CheckExact(value)) {
        return (Found)PySet_Contains(texts, value);
    }
    if (PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) || value == Py_None) {
        return (Found)PySet_Contains(types, (PyObject *)Py_TYPE(value));
    }
    return NO;
}

static Found
has_no_description(PyObject *status, const State *state)
{
    PyObject *description = PyObject_GetAttr(status, state->names[DESCRIPTION]);
    Found found = description == Py_None ? YES : NO;
    Py_XDECREF(description);
    return found;
}

static Found
is_shared(PyObject *span, PyObject *name, PyObject *known)
{
    PyObject *shared = PyObject_GetAttr(span, name);
    Found found = shared == known ? YES : NO;
    Py_XDECREF(shared);
    return found;
}

static Found
is_known_span(PyObject *span, const State *state, PyObject *const known[OF_KNOWN])
{
    PyObject *fields[OF_SPAN], *dict = NULL, *key, *value;
    Py_ssize_t place = 0;
    Found found;
    if (is_shared(span, state->names[RESOURCE], known[KNOWN_RESOURCE]) != YES
        || is_shared(span, state->names[SCOPE], known[KNOWN_SCOPE]) != YES) {
        return NO;
    }
    found = get_fields(span, state, fields);
    if (found == YES) {
        found = PyUnicode_CheckExact(fields[NAME]) ? (Found)PySet_Contains(known[TEXTS], fields[NAME]) : NO;
    }
    if (found == YES && (found = has_no_description(fields[STATUS], state)) == YES
        && (dict = dict_of(fields[ATTRIBUTES], state)) == NULL) {
        found = NO;
    }
    while (found == YES && PyDict_Next(dict, &place, &key, &value)) {
        found = is_known_attribute(key, value, known[KEYS], known[TEXTS], known[TYPES]);
    }
    Py_XDECREF(dict);
    drop_fields(fields);
    return found;
}

static PyObject *
is_known(PyObject *module, PyObject *arguments)
{
    PyObject *span, *tuple, *known[OF_KNOWN];
    Found found = NO;
    if (!PyArg_ParseTuple(arguments, "OO!", &span, &PyTuple_Type, &tuple)) {
        return NULL;
    }
    if (PyTuple_Size(tuple) == OF_KNOWN) {
        for (int place = 0; place < OF_KNOWN; place++) {
            known[place] = PyTuple_GetItem(tuple, place);
        }
        found = is_known_span(span, PyModule_GetState(module), known);
    }
    if (found == FAILED) {
        return NULL;
    }
    PyErr_Clear();
    return PyBool_FromLong(found);
}

/* Attributes that a span begins with */

static Found
needs_no_check(PyObject *key, PyObject *value)
{
    return PyUnicode_CheckExact(key) && PyUnicode_GetLength(key) > 0
                   && (PyUnicode_CheckExact(value) || PyBool_Check(value) || PyLong_CheckExact(value)
                       || PyFloat_CheckExact(value))
               ? YES
               : NO;
}

static PyObject *
plain_copy(PyObject *Py_UNUSED(module), PyObject *attributes)
{
    PyObject *copy, *key, *value;
    Py_ssize_t place = 0;
    if (!PyDict_CheckExact(attributes)) {
        return Py_NewRef(Py_None);
    }
    copy = PyDict_Copy(attributes);
    while (copy != NULL && PyDict_Next(copy, &place, &key, &value)) {
        if (needs_no_check(key, value) == NO) {
            Py_DECREF(copy);
            return Py_NewRef(Py_None);
        }
    }
    return copy;
}

/* The module */

static int
fill_state(PyObject *module)
{
    State *state = PyModule_GetState(module);
    for (int field = 0; field < FIELDS; field++) {
        if ((state->names[field] = PyUnicode_InternFromString(NAMES[field])) == NULL) {
            return -1;
        }
    }
    state->bits = PyLong_FromLong(64);
    return state->bits == NULL ? -1 : 0;
}

static int
clear_state(PyObject *module)
{
    State *state = PyModule_GetState(module);
    for (int field = 0; field < FIELDS; field++) {
        Py_CLEAR(state->names[field]);
    }
    Py_CLEAR(state->bits);
    return 0;
}

static void
free_state(void *module)
{
    clear_state(module);
}

static PyMethodDef functions[] = {
    {"encode", encode, METH_O, "Return a span as a field ScopeSpans.spans, None where it is not plain."},
    {"plain_copy", plain_copy, METH_O, "Return a copy of a dict of texts, numbers and truth values, None of others."},
    {"is_known", is_known, METH_VARARGS, "Return whether all of a span that may hold a secret is known."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill_state},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_plain_spans", .m_size = sizeof(State), .m_methods = functions,
    .m_slots = slots, .m_clear = clear_state, .m_free = free_state,
};

PyMODINIT_FUNC
PyInit__plain_spans(void)
{
    return PyModuleDef_Init(&definition);
}
