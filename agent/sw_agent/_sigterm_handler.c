/* The handler of SIGTERM: it writes a byte into a pipe, and does nothing else.

   In C because it has to act at once, whatever the process is doing, and may be set and taken away by any thread; what
   the module `signal` offers does neither. `_sigterm.py` says what it is for. */

#ifndef Py_GIL_DISABLED /* which has no stable ABI */
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

static int descriptor = -1;
static struct stat pipe_status;
static pid_t process = -1; /* whose pipe it is: a child may be born without anybody being told */

static void
on_sigterm(int number)
{
    int error = errno;
    struct stat now;
    if (getpid() == process && fstat(descriptor, &now) == 0 && now.st_dev == pipe_status.st_dev
        && now.st_ino == pipe_status.st_ino && (write(descriptor, "T", 1) == 1 || errno == EAGAIN)) {
        errno = error;
        return;
    }
    signal(number, SIG_DFL);
    raise(number);
}

static PyObject *
handler_register(PyObject *Py_UNUSED(module), PyObject *argument)
{
    struct sigaction before, action = {.sa_handler = on_sigterm, .sa_flags = SA_RESTART | SA_ONSTACK};
    long number = PyLong_AsLong(argument);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (sigaction(SIGTERM, NULL, &before) < 0 || fstat((int)number, &pipe_status) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (before.sa_flags & SA_SIGINFO || (before.sa_handler != SIG_DFL && before.sa_handler != on_sigterm)) {
        return Py_NewRef(Py_False);
    }
    descriptor = (int)number;
    process = getpid();
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGTERM, &action, NULL) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_NewRef(Py_True);
}

static PyObject *
handler_unregister(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    struct sigaction now;
    if (sigaction(SIGTERM, NULL, &now) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (!(now.sa_flags & SA_SIGINFO) && now.sa_handler == on_sigterm) {
        signal(SIGTERM, SIG_DFL);
    }
    return Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"register", handler_register, METH_O, "Write a byte into this descriptor at SIGTERM."},
    {"unregister", handler_unregister, METH_NOARGS, "Let SIGTERM do again what it does by default."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_sigterm_handler", .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__sigterm_handler(void)
{
    return PyModuleDef_Init(&module);
}
