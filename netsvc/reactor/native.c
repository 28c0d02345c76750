/*
 * The optional C extension of the reactor: what it does for every datagram, in one call for many of them, and what a
 * stream does for every message.
 *
 * Everything here has an equal in Python, which is used where this is not built. It holds the GIL throughout: no call
 * waits, and the memory for receiving is shared by all ports of the process. Only the limited API is used, so that one
 * wheel serves Python 3.11 and later.
 */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Changes with what Python expects of this file: `netsvc.reactor.extension` has the same number. */
#define INTERFACE 2

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

/* The type of datagram sockets. */

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

/* Streams. */

/* Bytes received at a time. */
#define MOST_RECEIVED 65536

/* The states of a stream, as in `netsvc.reactor.streams`. */
enum { QUEUED = 1, READING = 3, ANSWERED = 4 };

/* The attributes of a stream that are read for each message. All are attributes in Python as well. */
typedef struct {
    PyObject_HEAD
    PyObject *reactor, *protocol, *producer, *streaming_producer, *reads, *writes;
    /* The data that was written since the last flush, a list; and what the kernel did not take of an earlier one. */
    PyObject *written, *data_buffer;
    Py_ssize_t written_length, offset;
    int flushing, waiting, tls, connected, disconnecting, producer_paused, write_disconnecting, write_disconnected;
} Stream;

static char stream_received[MOST_RECEIVED];
static PyObject *connection_done, *connection_lost;
/* Names of attributes and methods in Python. */
static PyObject *name_fileno, *name_data_received, *name_flushes, *name_buffer_size, *name_start_writing;
static PyObject *name_write, *name_read, *name_answer, *name_pause;

/* Call a method without arguments; return whether it has raised no exception. */
static int call(PyObject *object, PyObject *name) {
    PyObject *result = PyObject_CallMethodObjArgs(object, name, NULL);
    Py_XDECREF(result);
    return result != NULL;
}

/* Whether a producer has to be asked whether the buffer is full now: -1 for an exception. */
static int is_full(Stream *self) {
    Py_ssize_t buffered = self->data_buffer == NULL ? 0 : PyObject_Size(self->data_buffer);
    PyObject *size = buffered < 0 ? NULL : PyObject_GetAttr((PyObject *)self, name_buffer_size);
    if (size == NULL) return -1;
    Py_ssize_t most = PyLong_AsSsize_t(size);
    Py_DECREF(size);
    return most == -1 && PyErr_Occurred() ? -1 : buffered + self->written_length > most;
}

static PyObject *stream_write(PyObject *object, PyObject *data) {
    Stream *self = (Stream *)object;
    if (self->tls || !PyBytes_CheckExact(data) || self->written == NULL || !PyList_CheckExact(self->written))
        return PyObject_CallMethodObjArgs(object, name_write, data, NULL);
    Py_ssize_t length = PyBytes_Size(data);
    if (!length || !self->connected || self->write_disconnected) return Py_NewRef(Py_None);
    if (PyList_Append(self->written, data) < 0) return NULL;
    self->written_length += length;
    if (self->producer != NULL && self->producer != Py_None) {
        int full = is_full(self);
        if (full < 0 || (full && !call(object, name_pause))) return NULL;
    }
    if (self->flushing == READING) {
        self->flushing = ANSWERED;
    } else if (self->flushing || self->waiting) {
        if (!call(object, name_start_writing)) return NULL;
    } else {
        PyObject *flushes = self->reactor == NULL ? NULL : PyObject_GetAttr(self->reactor, name_flushes);
        if (flushes == NULL && !PyErr_Occurred()) PyErr_SetString(PyExc_AttributeError, "reactor");
        self->flushing = QUEUED;
        int failed = flushes == NULL || PyList_Append(flushes, object) < 0;
        Py_XDECREF(flushes);
        if (failed) return NULL;
    }
    return Py_NewRef(Py_None);
}

/* Whether what was written is to be sent at once: a producer, if there is one, pushes and is not paused. */
static int sends_at_once(const Stream *self) {
    if (self->flushing != ANSWERED || (self->writes != NULL && self->writes != Py_None)) return 0;
    if (self->written == NULL || !PyList_CheckExact(self->written) || PyList_Size(self->written) != 1
        || !PyBytes_CheckExact(PyList_GetItem(self->written, 0)))
        return 0;
    if (self->producer == NULL || self->producer == Py_None) return 1;
    if (self->producer_paused || self->streaming_producer == NULL) return 0;
    int streams = PyObject_IsTrue(self->streaming_producer);
    if (streams < 0) PyErr_Clear();
    return streams > 0;
}

static PyObject *stream_do_read(PyObject *object, PyObject *ignored) {
    (void)ignored;
    Stream *self = (Stream *)object;
    /* What has limits stays in Python. */
    if (self->reads != NULL && self->reads != Py_None) return PyObject_CallMethodObjArgs(object, name_read, NULL);
    PyObject *number = PyObject_CallMethodObjArgs(object, name_fileno, NULL);
    if (number == NULL) return NULL;
    int descriptor = (int)PyLong_AsLong(number);
    Py_DECREF(number);
    if (descriptor < 0) {
        PyErr_Clear();
        return Py_NewRef(connection_lost);
    }
    ssize_t count;
    do count = recv(descriptor, stream_received, MOST_RECEIVED, 0);
    while (count < 0 && errno == EINTR);
    if (count < 0) return Py_NewRef(errno == EAGAIN ? Py_None : connection_lost);
    if (count == 0) return Py_NewRef(connection_done);
    PyObject *data = PyBytes_FromStringAndSize(stream_received, count);
    if (data == NULL) return NULL;
    PyObject *protocol = self->protocol;
    if (protocol == NULL) {
        Py_DECREF(data);
        PyErr_SetString(PyExc_AttributeError, "protocol");
        return NULL;
    }
    Py_INCREF(protocol);
    int is_idle = !self->flushing && !self->waiting;
    if (is_idle) self->flushing = READING;
    PyObject *result = PyObject_CallMethodObjArgs(protocol, name_data_received, data, NULL);
    Py_DECREF(protocol);
    Py_DECREF(data);
    if (result == NULL) {
        /* The connection is about to be lost, with everything written to it. */
        if (is_idle) self->flushing = 0;
        return NULL;
    }
    Py_DECREF(result);
    if (!is_idle) return Py_NewRef(Py_None);
    if (self->flushing == READING) {
        self->flushing = 0;
        return Py_NewRef(Py_None);
    }
    if (sends_at_once(self)) {
        /* The most common case: one answer. */
        PyObject *answer = PyList_GetItem(self->written, 0);
        Py_ssize_t length = PyBytes_Size(answer);
        ssize_t sent = send(descriptor, PyBytes_AsString(answer), (size_t)length, MSG_NOSIGNAL);
        if (sent == length) {
            self->written_length = self->flushing = 0;
            if (PyList_SetSlice(self->written, 0, 1, NULL) < 0) return NULL;
            return Py_NewRef(Py_None);
        }
        /* `doWrite` will get the error as well. */
        self->offset = sent < 0 ? 0 : sent;
        self->written_length = 0;
        PyObject *before = self->data_buffer;
        self->data_buffer = Py_NewRef(answer);
        Py_XDECREF(before);
        if (PyList_SetSlice(self->written, 0, 1, NULL) < 0) return NULL;
    }
    if (self->flushing < ANSWERED) return Py_NewRef(Py_None);
    return PyObject_CallMethodObjArgs(object, name_answer, NULL);
}

static PyObject *new_stream(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    (void)arguments;
    (void)keywords;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Stream *self = (Stream *)allocate(type, 0);
    if (self == NULL) return NULL;
    self->data_buffer = PyBytes_FromStringAndSize(NULL, 0);
    if (self->data_buffer == NULL) Py_CLEAR(self);
    return (PyObject *)self;
}

static int traverse_stream(PyObject *object, visitproc visit, void *arg) {
    Stream *self = (Stream *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->reactor);
    Py_VISIT(self->protocol);
    Py_VISIT(self->producer);
    Py_VISIT(self->streaming_producer);
    Py_VISIT(self->reads);
    Py_VISIT(self->writes);
    Py_VISIT(self->written);
    return 0;
}

static int clear_stream(PyObject *object) {
    Stream *self = (Stream *)object;
    Py_CLEAR(self->reactor);
    Py_CLEAR(self->protocol);
    Py_CLEAR(self->producer);
    Py_CLEAR(self->streaming_producer);
    Py_CLEAR(self->reads);
    Py_CLEAR(self->writes);
    Py_CLEAR(self->written);
    Py_CLEAR(self->data_buffer);
    return 0;
}

static void dealloc_stream(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    clear_stream(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyMemberDef stream_members[] = {
    {"reactor", T_OBJECT_EX, offsetof(Stream, reactor), 0, NULL},
    {"protocol", T_OBJECT_EX, offsetof(Stream, protocol), 0, NULL},
    {"producer", T_OBJECT, offsetof(Stream, producer), 0, NULL},
    {"streamingProducer", T_OBJECT, offsetof(Stream, streaming_producer), 0, NULL},
    {"producerPaused", T_INT, offsetof(Stream, producer_paused), 0, NULL},
    {"reads", T_OBJECT, offsetof(Stream, reads), 0, NULL},
    {"writes", T_OBJECT, offsetof(Stream, writes), 0, NULL},
    {"dataBuffer", T_OBJECT_EX, offsetof(Stream, data_buffer), 0, NULL},
    {"offset", T_PYSSIZET, offsetof(Stream, offset), 0, NULL},
    {"_tempDataBuffer", T_OBJECT_EX, offsetof(Stream, written), 0, NULL},
    {"_tempDataLen", T_PYSSIZET, offsetof(Stream, written_length), 0, NULL},
    {"flushing", T_INT, offsetof(Stream, flushing), 0, NULL},
    {"waiting", T_INT, offsetof(Stream, waiting), 0, NULL},
    {"TLS", T_INT, offsetof(Stream, tls), 0, NULL},
    {"connected", T_INT, offsetof(Stream, connected), 0, NULL},
    {"disconnecting", T_INT, offsetof(Stream, disconnecting), 0, NULL},
    {"_writeDisconnecting", T_INT, offsetof(Stream, write_disconnecting), 0, NULL},
    {"_writeDisconnected", T_INT, offsetof(Stream, write_disconnected), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef stream_methods[] = {
    {"write", stream_write, METH_O, "Write bytes; see ITransport.write."},
    {"doRead", stream_do_read, METH_NOARGS, "Read once, pass the data to the protocol, and send its answer."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, "The part of a stream transport that runs for each message."},
    {Py_tp_new, new_stream},
    {Py_tp_dealloc, dealloc_stream},
    {Py_tp_traverse, traverse_stream},
    {Py_tp_clear, clear_stream},
    {Py_tp_members, stream_members},
    {Py_tp_methods, stream_methods},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "netsvc.reactor.native.Stream",
    .basicsize = sizeof(Stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = stream_slots,
};

static int intern_names(void) {
    static const struct {
        PyObject **place;
        const char *name;
    } all[] = {
        {&name_fileno, "fileno"},
        {&name_data_received, "dataReceived"},
        {&name_flushes, "flushes"},
        {&name_buffer_size, "bufferSize"},
        {&name_start_writing, "startWriting"},
        {&name_pause, "_maybePauseProducer"},
        {&name_write, "write_slowly"},
        {&name_read, "read_slowly"},
        {&name_answer, "flush_answer"},
    };
    for (size_t number = 0; number < sizeof all / sizeof *all; number++) {
        *all[number].place = PyUnicode_InternFromString(all[number].name);
        if (*all[number].place == NULL) return -1;
    }
    PyObject *main = PyImport_ImportModule("twisted.internet.main");
    if (main == NULL) return -1;
    connection_done = PyObject_GetAttrString(main, "CONNECTION_DONE");
    connection_lost = PyObject_GetAttrString(main, "CONNECTION_LOST");
    Py_DECREF(main);
    return connection_done == NULL || connection_lost == NULL ? -1 : 0;
}

/* Accepting. */

static PyObject *accept_one(PyObject *module, PyObject *argument) {
    (void)module;
    long listening = PyLong_AsLong(argument);
    if (listening == -1 && PyErr_Occurred()) return NULL;
    Name name;
    socklen_t length = sizeof name;
    int descriptor;
    do descriptor = accept4((int)listening, &name.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) return PyErr_SetFromErrno(PyExc_OSError);
    char host[INET6_ADDRSTRLEN];
    PyObject *accepted;
    if (length == sizeof name.ipv4 && name.any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &name.ipv4.sin_addr, host, sizeof host);
        accepted = Py_BuildValue("i(si)", descriptor, host, ntohs(name.ipv4.sin_port));
    } else if (length == sizeof name.ipv6 && name.any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &name.ipv6.sin6_addr, host, sizeof host);
        accepted = Py_BuildValue("i(siIk)", descriptor, host, ntohs(name.ipv6.sin6_port),
                                 (unsigned)ntohl(name.ipv6.sin6_flowinfo), (unsigned long)name.ipv6.sin6_scope_id);
    } else {
        errno = EPROTO;
        accepted = PyErr_SetFromErrno(PyExc_OSError);
    }
    if (accepted == NULL) close(descriptor);
    return accepted;
}

static PyMethodDef functions[] = {
    {"accept", accept_one, METH_O, "Accept an IP connection without blocking; return its descriptor and peer."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "netsvc.reactor.native", .m_doc = "The optional C extension of the reactor.",
    .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC PyInit_native(void) {
    PyObject *module = intern_names() < 0 ? NULL : PyModule_Create(&definition);
    PyObject *datagrams = module == NULL ? NULL : PyType_FromSpec(&spec);
    PyObject *stream = datagrams == NULL ? NULL : PyType_FromSpec(&stream_spec);
    if (stream == NULL || PyModule_AddIntConstant(module, "BATCH", BATCH) < 0
        || PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0
        || PyModule_AddObjectRef(module, "Datagrams", datagrams) < 0
        || PyModule_AddObjectRef(module, "Stream", stream) < 0)
        Py_CLEAR(module);
    Py_XDECREF(datagrams);
    Py_XDECREF(stream);
    return module;
}
