/*
 * pstorage.h: files of a pstorage cluster from C.
 *
 *     cc -o program program.c -lpstorage
 *
 * The shape of it: ps_open reaches a cluster, ps_file_open opens a file of it, ps_submit starts an
 * operation and returns at once. The end of an operation is told in one of two ways, chosen for
 * each: its done function is called, or it is handed out by ps_poll. ps_pread and its like wait.
 *
 * Results.  Functions that return int or int64_t return 0 or more, or an errno as a negative
 * number (-ENOENT). For those that don't take a ps_op, ps_error() then has a sentence for people.
 * -EINVAL is also for a ps_cluster or ps_file that is closed, or was never open. -ESHUTDOWN: the
 * library can't go on with this cluster, as its event loop failed; what is in flight won't end.
 *
 * Memory.  A ps_op and its buffer belong to the library from ps_submit until the operation has
 * ended (its done function is called, or ps_poll returned it); before and after they are the
 * caller's. They must not be freed, moved or changed meanwhile (reading what is being written is
 * fine). Buffers need no alignment; multiples of 4096 at offsets of multiples of 4096 are fastest.
 *
 * Threads.  Every function may be called by any thread at any time, except for a handle that is
 * being closed. done functions are called on one thread of the library: they must not block, nor
 * call functions that wait (ps_open, ps_close, ps_file_open, ps_file_close, ps_grow, ps_pread,
 * ps_pwrite, ps_discard, ps_flush, ps_poll with a timeout): what they wait for would need that very
 * thread. They may call ps_submit, also with the same op.
 *
 * Order.  Operations that are in flight together have no order among them. What an operation sees
 * is everything that ended before it was submitted.
 *
 * Durability.  A write that ended well is on stable storage on all copies, unless the file is
 * one with write-ack=memory: then after a flush, or with PS_FUA.
 *
 * Failures of the cluster.  An operation doesn't fail while its data are safe: it waits for as
 * long as it takes. A write whose result is an error may have been done in part: each 4096-byte
 * block is old or new.
 *
 * Processes.  The library has threads of its own and can't be used in the child of a fork (an exec
 * after it is fine), nor be unloaded. It reacts to no signals but those of its own runtime, whose
 * handlers pass others on to the handlers that were there before.
 */
#ifndef PSTORAGE_H
#define PSTORAGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface; ps_version() is that of the library. */
#define PS_VERSION 1
int ps_version(void);

typedef struct ps_cluster ps_cluster; /* a connection to a cluster */
typedef struct ps_file ps_file;       /* an open file */

/*
 * Reaches a cluster. name: which one of those that this machine is authorized for; NULL: the only
 * one. etc: the directory of the configuration; NULL: $PSTORAGE_ETC, or /etc/pstorage. Fails with
 * -ETIMEDOUT if no metadata server answers within timeout_ms milliseconds. Until ps_close the list
 * of metadata servers in etc (bs.list) is kept up to date, if the process may write it.
 */
int ps_open(const char *name, const char *etc, int timeout_ms, ps_cluster **cluster);

/*
 * Leaves the cluster. Its files must be closed, its operations must have ended, and those without
 * a done function must have been handed out by ps_poll. -EBUSY: they aren't, and nothing happens.
 */
int ps_close(ps_cluster *cluster);

/* Flags of ps_file_open. */
#define PS_CREATE 1u    /* make it if it isn't there; size is its size then, in bytes */
#define PS_EXCLUSIVE 2u /* with PS_CREATE: fail with -EEXIST if it is there */

/*
 * Opens the file at an absolute path of the cluster. One client at a time may write a file:
 * another's writes wait for up to 20 seconds and then end with -EBUSY; reads need no right.
 */
int ps_file_open(ps_cluster *cluster, const char *path, unsigned flags, uint64_t size,
                 ps_file **file);

/*
 * Closes a file. What is acknowledged is made durable first. It waits for a done function that
 * runs; when it has returned 0 none is left to be called. -EBUSY: operations are in flight, also
 * those that done functions started again, and nothing happens.
 */
int ps_file_close(ps_file *file);

/* The size in bytes, as far as this client knows: it learns of its own writes at once. */
int64_t ps_size(ps_file *file);

/* Makes the file at least size bytes long; what is new reads as zeros and takes no space. */
int ps_grow(ps_file *file, uint64_t size);

/* What an operation does. */
enum {
    PS_READ = 0,    /* fill buf; at the end of the file fewer bytes */
    PS_WRITE = 1,   /* write buf; the file grows as needed */
    PS_DISCARD = 2, /* [offset, offset + length) reads as zeros; its space is given back */
    PS_FLUSH = 3    /* make all writes that ended durable; nothing to do with write-ack=disk */
};

#define PS_FUA 1u /* flag of PS_WRITE: durable when it ends, whatever the file's write-ack */

/*
 * One operation. Set everything down to user (zero what isn't needed), leave the rest alone.
 */
typedef struct ps_op ps_op;
struct ps_op {
    int kind;         /* PS_READ ... */
    unsigned flags;   /* PS_FUA or 0 */
    uint64_t offset;  /* in the file, in bytes */
    uint64_t length;  /* in bytes; reads and writes: at most 1 GiB; 0 is fine */
    void *buf;        /* of PS_READ and PS_WRITE */
    void (*done)(ps_op *op); /* called at the end; NULL: ps_poll returns the op */
    void *user;       /* the caller's own */
    int64_t result;   /* at the end: bytes done, or an errno as a negative number */
    uint64_t reserved[2];
};

/*
 * Starts an operation. If it returns less than 0 nothing was started and op is the caller's:
 * -EINVAL: a field makes no sense, or the file isn't open; -ESHUTDOWN: see above.
 */
int ps_submit(ps_file *file, ps_op *op);

/*
 * Hands out up to max operations without a done function that have ended, and returns how many. If
 * there is none it waits for one: for timeout_ms milliseconds, for ever if that is negative, not
 * at all if it is 0.
 */
int ps_poll(ps_cluster *cluster, ps_op **ops, int max, int timeout_ms);

/*
 * A descriptor that is readable while ps_poll has something to hand out, for poll(2) and its like.
 * It is the library's: don't read from it or close it.
 */
int ps_poll_fd(ps_cluster *cluster);

/* The same operations for callers that wait. Bytes done, or an errno as a negative number. */
int64_t ps_pread(ps_file *file, void *buf, size_t length, uint64_t offset);
int64_t ps_pwrite(ps_file *file, const void *buf, size_t length, uint64_t offset);
int64_t ps_discard(ps_file *file, uint64_t length, uint64_t offset);
int64_t ps_flush(ps_file *file);

/*
 * What went wrong in the last call of this thread that failed, for people: what was tried, where,
 * and what to do. Valid until the thread's next call that fails. Never NULL.
 */
const char *ps_error(void);

#ifdef __cplusplus
}
#endif

#endif
