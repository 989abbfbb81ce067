/*
 * The functions of pstorage.h, for C. What they do is in Go (lib.go, op.go); this file keeps the
 * texts of errors by thread, and lets Go call C functions through pointers.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "_cgo_export.h"
#include "glue.h"

static __thread char last_error[512];

/* Go calls it on the thread that has called Go. */
void psSetError(const char *text) { snprintf(last_error, sizeof last_error, "%s", text); }

void psCallDone(ps_op *op) { op->done(op); }

const char *ps_error(void) { return last_error; }

int ps_version(void) { return PS_VERSION; }

int ps_open(const char *name, const char *etc, int timeout_ms, ps_cluster **cluster) {
    uint64_t handle = 0;
    int rc = psOpen((char *)name, (char *)etc, timeout_ms, &handle);
    *cluster = (ps_cluster *)(uintptr_t)handle;
    return rc;
}

int ps_close(ps_cluster *cluster) { return psClose((uintptr_t)cluster); }

int ps_file_open(ps_cluster *cluster, const char *path, unsigned flags, uint64_t size,
                 ps_file **file) {
    uint64_t handle = 0;
    int rc = psFileOpen((uintptr_t)cluster, (char *)path, flags, size, &handle);
    *file = (ps_file *)(uintptr_t)handle;
    return rc;
}

int ps_file_close(ps_file *file) { return psFileClose((uintptr_t)file); }

int64_t ps_size(ps_file *file) { return psSize((uintptr_t)file); }

int ps_grow(ps_file *file, uint64_t size) { return psGrow((uintptr_t)file, size); }

int ps_submit(ps_file *file, ps_op *op) { return psSubmit((uintptr_t)file, op); }

int ps_poll(ps_cluster *cluster, ps_op **ops, int max, int timeout_ms) {
    return psPoll((uintptr_t)cluster, ops, max, timeout_ms);
}

int ps_poll_fd(ps_cluster *cluster) { return psPollFD((uintptr_t)cluster); }

/* wait does an operation and waits for its end. */
static int64_t wait_for(ps_file *file, int kind, void *buf, uint64_t length, uint64_t offset) {
    ps_op op;
    memset(&op, 0, sizeof op);
    op.kind = kind;
    op.offset = offset;
    op.length = length;
    op.buf = buf;
    return psWait((uintptr_t)file, &op);
}

int64_t ps_pread(ps_file *file, void *buf, size_t length, uint64_t offset) {
    return wait_for(file, PS_READ, buf, length, offset);
}

int64_t ps_pwrite(ps_file *file, const void *buf, size_t length, uint64_t offset) {
    return wait_for(file, PS_WRITE, (void *)buf, length, offset);
}

int64_t ps_discard(ps_file *file, uint64_t length, uint64_t offset) {
    return wait_for(file, PS_DISCARD, NULL, length, offset);
}

int64_t ps_flush(ps_file *file) { return wait_for(file, PS_FLUSH, NULL, 0, 0); }
