/*
 * The optional C extension of the reactor: what it does for every datagram, in one call for many of them.
 *
 * Everything here has an equal in Python, which is used where this is not built. It holds the GIL throughout: no call
 * waits, and the memory for receiving is shared by all ports of the process. Only the limited API is used, so that one
 * wheel serves Python 3.11 and later.
 */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

/* Datagrams received at a time; the room of one, the longest of which has 65,527 bytes. */
#define BATCH 8
#define ROOM 65536
/* Not a multiple of a page more: else the first bytes of all would share the same lines of the processor's cache. */
#define STRIDE (ROOM + 320)
/* A socket that was passed to us may have other options on, and so other ancillary data. */
#define CONTROL_ROOM 256
/* Datagrams collected before they are sent, and the length of the longest one. */
#define MOST_COLLECTED 32
#define LONGEST_COLLECTED 2048
/* Addresses of peers that are kept in Python's form: a power of two. */
#define ADDRESSES 1024

/* The longest ancillary data that sets a source: an in6_pktinfo. */
#define SOURCE_ROOM CMSG_SPACE(sizeof(struct in6_pktinfo))

typedef union {
    struct sockaddr any;
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
} Name;

typedef union {
    struct cmsghdr aligned;
    char bytes[CONTROL_ROOM];
} Control;

typedef union {
    struct cmsghdr aligned;
    char bytes[SOURCE_ROOM];
} SourceControl;

/* What all ports receive into, one after the other. */
static char received[BATCH * STRIDE];
static Name names[BATCH];
static Control controls[BATCH];
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];

/* The last peers of all ports: the address as the system writes it, and a tuple of what a protocol gets and of what
   `socket.sendto` takes. */
static struct {
    Name name;
    PyObject *addresses;
} known[ADDRESSES];

/* A datagram that waits to be sent. */
typedef struct {
    PyObject *data, *sockaddr, *source, *owner;
    Name name;
    SourceControl control;
} Collected;

typedef struct {
    PyObject_HEAD
    PyObject *socket;
    int family;
    int reports_controls;
    /* The ancillary data that was returned last: mostly it is the same again. */
    PyObject *last_controls;
    /* The source that was set last, and what it is as ancillary data. */
    PyObject *last_source;
    SourceControl source_control;
    size_t source_length;
    /* When the first of `collected` came. */
    struct timespec since;
    unsigned count;
    Collected collected[MOST_COLLECTED];
    struct iovec parts[MOST_COLLECTED];
    struct mmsghdr messages[MOST_COLLECTED];
} Datagrams;

static int descriptor_of(PyObject *socket) {
    PyObject *number = PyObject_CallMethod(socket, "fileno", NULL);
    if (number == NULL) return -1;
    long descriptor = PyLong_AsLong(number);
    Py_DECREF(number);
    if (descriptor < 0 && !PyErr_Occurred()) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return (int)descriptor;
}

/* Receiving. */

static PyObject *read_name(const Name *name) {
    char host[INET6_ADDRSTRLEN];
    if (name->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &name->ipv4.sin_addr, host, sizeof host);
        PyObject *address = Py_BuildValue("(si)", host, ntohs(name->ipv4.sin_port));
        PyObject *both = address == NULL ? NULL : PyTuple_Pack(2, address, address);
        Py_XDECREF(address);
        return both;
    }
    inet_ntop(AF_INET6, &name->ipv6.sin6_addr, host, sizeof host);
    int port = ntohs(name->ipv6.sin6_port);
    return Py_BuildValue("((si)(siIk))", host, port, host, port, (unsigned)ntohl(name->ipv6.sin6_flowinfo),
                         (unsigned long)name->ipv6.sin6_scope_id);
}

static PyObject *addresses_of(const Name *name, size_t length) {
    const unsigned char *bytes = (const unsigned char *)name;
    unsigned place = 0;
    for (size_t number = 2; number < length; number++) place = place * 31 + bytes[number];
    place = (place ^ place >> 11) % ADDRESSES;
    if (known[place].addresses == NULL || memcmp(&known[place].name, name, length) != 0) {
        PyObject *fresh = read_name(name);
        if (fresh == NULL) return NULL;
        PyObject *before = known[place].addresses;
        known[place].addresses = fresh;
        memcpy(&known[place].name, name, length);
        Py_XDECREF(before);
    }
    return Py_NewRef(known[place].addresses);
}

static PyObject *controls_of(Datagrams *self, const struct msghdr *header) {
    size_t length = self->reports_controls ? header->msg_controllen : 0;
    PyObject *last = self->last_controls;
    if (last == NULL || (size_t)PyBytes_Size(last) != length
        || memcmp(PyBytes_AsString(last), header->msg_control, length) != 0) {
        PyObject *fresh = PyBytes_FromStringAndSize(header->msg_control, (Py_ssize_t)length);
        if (fresh == NULL) return NULL;
        self->last_controls = fresh;
        Py_XDECREF(last);
    }
    return Py_NewRef(self->last_controls);
}

static PyObject *datagram_of(Datagrams *self, const struct mmsghdr *message, size_t name_length) {
    const struct msghdr *header = &message->msg_hdr;
    PyObject *data = PyBytes_FromStringAndSize(header->msg_iov->iov_base, message->msg_len);
    PyObject *addresses = addresses_of(header->msg_name, name_length);
    PyObject *ancillary = controls_of(self, header);
    PyObject *datagram = NULL;
    if (data != NULL && addresses != NULL && ancillary != NULL) datagram = PyTuple_Pack(3, data, addresses, ancillary);
    Py_XDECREF(data);
    Py_XDECREF(addresses);
    Py_XDECREF(ancillary);
    return datagram;
}

static PyObject *receive(PyObject *object, PyObject *ignored) {
    (void)ignored;
    Datagrams *self = (Datagrams *)object;
    int descriptor = descriptor_of(self->socket);
    if (descriptor < 0) return NULL;
    size_t name_length = self->family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    for (int number = 0; number < BATCH; number++) {
        struct msghdr *header = &messages[number].msg_hdr;
        parts[number] = (struct iovec){received + (size_t)number * STRIDE, ROOM - 1};
        *header = (struct msghdr){.msg_name = &names[number], .msg_namelen = sizeof(Name), .msg_iov = &parts[number],
                                  .msg_iovlen = 1, .msg_control = controls[number].bytes,
                                  .msg_controllen = self->reports_controls ? CONTROL_ROOM : 0};
    }
    int count = recvmmsg(descriptor, messages, BATCH, MSG_DONTWAIT, NULL);
    if (count < 0) return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *batch = PyList_New(count);
    for (int number = 0; batch != NULL && number < count; number++) {
        PyObject *datagram = datagram_of(self, &messages[number], name_length);
        if (datagram == NULL) Py_CLEAR(batch);
        else PyList_SetItem(batch, number, datagram);
    }
    return batch;
}

/* Sending. */

/* Write what `socket.sendto` takes as the system takes it. Returns its length; 0 if that is not possible here, without
   an exception. */
static socklen_t write_name(int family, PyObject *sockaddr, Name *name) {
    Py_ssize_t size = PyTuple_Check(sockaddr) ? PyTuple_Size(sockaddr) : 0;
    if (size < 2 || (size > 2 && family == AF_INET) || size > 4) return 0;
    PyObject *text = PyTuple_GetItem(sockaddr, 0);
    const char *host = PyUnicode_Check(text) ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
    unsigned long numbers[3] = {0, 0, 0};
    for (Py_ssize_t place = 1; host != NULL && place < size; place++) {
        PyObject *number = PyTuple_GetItem(sockaddr, place);
        numbers[place - 1] = PyLong_Check(number) ? PyLong_AsUnsignedLong(number) : (unsigned long)-1;
        if (numbers[place - 1] > 0xffffffff) host = NULL;
    }
    PyErr_Clear();
    if (host == NULL || numbers[0] > 0xffff) return 0;
    if (family == AF_INET) {
        name->ipv4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)numbers[0])};
        return inet_pton(AF_INET, host, &name->ipv4.sin_addr) == 1 ? sizeof name->ipv4 : 0;
    }
    name->ipv6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)numbers[0]),
                                       .sin6_flowinfo = htonl((uint32_t)numbers[1]),
                                       .sin6_scope_id = (uint32_t)numbers[2]};
    return inet_pton(AF_INET6, host, &name->ipv6.sin6_addr) == 1 ? sizeof name->ipv6 : 0;
}

/* Make `source_control` of a source, a list of one item of ancillary data. Returns whether that was possible. */
static int set_source(Datagrams *self, PyObject *source) {
    PyObject *item = PyList_Check(source) && PyList_Size(source) == 1 ? PyList_GetItem(source, 0) : NULL;
    if (item == NULL || !PyTuple_Check(item) || PyTuple_Size(item) != 3) return 0;
    PyObject *level = PyTuple_GetItem(item, 0), *type = PyTuple_GetItem(item, 1), *data = PyTuple_GetItem(item, 2);
    if (!PyLong_Check(level) || !PyLong_Check(type) || !PyBytes_Check(data)) return 0;
    size_t length = (size_t)PyBytes_Size(data);
    if (length > SOURCE_ROOM || CMSG_SPACE(length) > SOURCE_ROOM) return 0;
    memset(&self->source_control, 0, sizeof self->source_control);
    struct cmsghdr *header = &self->source_control.aligned;
    header->cmsg_len = CMSG_LEN(length);
    header->cmsg_level = (int)PyLong_AsLong(level);
    header->cmsg_type = (int)PyLong_AsLong(type);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    memcpy(CMSG_DATA(header), PyBytes_AsString(data), length);
    self->source_length = CMSG_SPACE(length);
    PyObject *before = self->last_source;
    self->last_source = Py_NewRef(source);
    Py_XDECREF(before);
    return 1;
}

static PyObject *collect(PyObject *object, PyObject *const *arguments, Py_ssize_t size) {
    Datagrams *self = (Datagrams *)object;
    if (size != 4) {
        PyErr_SetString(PyExc_TypeError, "collect() takes data, sockaddr, source and owner");
        return NULL;
    }
    PyObject *data = arguments[0], *sockaddr = arguments[1], *source = arguments[2], *owner = arguments[3];
    unsigned number = self->count;
    if (number == MOST_COLLECTED || !PyBytes_CheckExact(data) || PyBytes_Size(data) > LONGEST_COLLECTED)
        return Py_NewRef(Py_False);
    struct timespec now;
    /* Ticks every few milliseconds: what waits for a slow protocol waits for one of its calls, not for all. */
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (number && (now.tv_nsec != self->since.tv_nsec || now.tv_sec != self->since.tv_sec))
        return Py_NewRef(Py_False);
    Collected *entry = &self->collected[number];
    socklen_t name_length = write_name(self->family, sockaddr, &entry->name);
    if (name_length == 0 || (source != Py_None && source != self->last_source && !set_source(self, source)))
        return Py_NewRef(Py_False);
    self->parts[number] = (struct iovec){PyBytes_AsString(data), (size_t)PyBytes_Size(data)};
    struct msghdr *header = &self->messages[number].msg_hdr;
    *header = (struct msghdr){.msg_name = &entry->name, .msg_namelen = name_length, .msg_iov = &self->parts[number],
                              .msg_iovlen = 1};
    if (source != Py_None) {
        entry->control = self->source_control;
        header->msg_control = &entry->control;
        header->msg_controllen = self->source_length;
    }
    entry->data = Py_NewRef(data);
    entry->sockaddr = Py_NewRef(sockaddr);
    entry->source = Py_NewRef(source);
    entry->owner = Py_NewRef(owner);
    self->since = now;
    self->count++;
    return Py_NewRef(Py_True);
}

static void forget(Collected *entry) {
    Py_CLEAR(entry->data);
    Py_CLEAR(entry->sockaddr);
    Py_CLEAR(entry->source);
    Py_CLEAR(entry->owner);
}

static PyObject *flush(PyObject *object, PyObject *ignored) {
    (void)ignored;
    Datagrams *self = (Datagrams *)object;
    unsigned count = self->count, done = 0;
    if (count == 0) return PyList_New(0);
    int descriptor = descriptor_of(self->socket);
    if (descriptor < 0) PyErr_Clear();
    PyObject *failed = PyList_New(0);
    while (done < count) {
        int sent = sendmmsg(descriptor, self->messages + done, count - done, MSG_DONTWAIT);
        if (sent > 0) {
            done += (unsigned)sent;
            continue;
        }
        int number = errno;
        if (number == EINTR) continue;
        /* The first of them has failed; what has become of the others is not known yet. */
        Collected *entry = &self->collected[done++];
        if (failed != NULL) {
            PyObject *item = Py_BuildValue("(OOOOi)", entry->data, entry->sockaddr, entry->source, entry->owner, number);
            if (item == NULL || PyList_Append(failed, item) < 0) Py_CLEAR(failed);
            Py_XDECREF(item);
        }
    }
    /* Freeing an object may run any code, which may collect again. */
    self->count = 0;
    Collected sent_ones[MOST_COLLECTED];
    for (unsigned place = 0; place < count; place++) {
        sent_ones[place].data = self->collected[place].data;
        sent_ones[place].sockaddr = self->collected[place].sockaddr;
        sent_ones[place].source = self->collected[place].source;
        sent_ones[place].owner = self->collected[place].owner;
    }
    for (unsigned place = 0; place < count; place++) forget(&sent_ones[place]);
    return failed;
}

/* The type. */

static PyObject *new_datagrams(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *words[] = {"socket", "controls", NULL};
    PyObject *socket;
    int reports_controls;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Op", words, &socket, &reports_controls)) return NULL;
    PyObject *family = PyObject_GetAttrString(socket, "family");
    long number = family == NULL ? -1 : PyLong_AsLong(family);
    Py_XDECREF(family);
    if (number == -1 && PyErr_Occurred()) return NULL;
    if (number != AF_INET && number != AF_INET6) {
        PyErr_SetString(PyExc_ValueError, "not a socket for IPv4 or IPv6");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Datagrams *self = (Datagrams *)allocate(type, 0);
    if (self == NULL) return NULL;
    self->socket = Py_NewRef(socket);
    self->family = (int)number;
    self->reports_controls = reports_controls;
    return (PyObject *)self;
}

static int traverse(PyObject *object, visitproc visit, void *arg) {
    Datagrams *self = (Datagrams *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->socket);
    for (unsigned number = 0; number < self->count; number++) {
        Py_VISIT(self->collected[number].owner);
        Py_VISIT(self->collected[number].source);
        Py_VISIT(self->collected[number].sockaddr);
    }
    return 0;
}

static int clear(PyObject *object) {
    Datagrams *self = (Datagrams *)object;
    Py_CLEAR(self->socket);
    Py_CLEAR(self->last_controls);
    Py_CLEAR(self->last_source);
    while (self->count) forget(&self->collected[--self->count]);
    return 0;
}

static void dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    clear(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"receive", receive, METH_NOARGS, "Receive up to BATCH datagrams. Raises OSError."},
    {"collect", (PyCFunction)(void (*)(void))collect, METH_FASTCALL,
     "Keep a datagram for flush(); return False if it must be sent now."},
    {"flush", flush, METH_NOARGS, "Send what was collected; return what the system did not take."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Receives and sends the datagrams of a socket, many at a time."},
    {Py_tp_new, new_datagrams},
    {Py_tp_dealloc, dealloc},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "netsvc.reactor.native.Datagrams",
    .basicsize = sizeof(Datagrams),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "netsvc.reactor.native", .m_doc = "The optional C extension of the reactor.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit_native(void) {
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module == NULL ? NULL : PyType_FromSpec(&spec);
    if (type == NULL || PyModule_AddIntConstant(module, "BATCH", BATCH) < 0
        || PyModule_AddObjectRef(module, "Datagrams", type) < 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}
