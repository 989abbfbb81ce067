/*
 * Writes blocks with many operations in flight, reads them back and compares them, with both ways
 * to learn of an operation's end.
 *
 *     make lib
 *     cc -o example cmd/libpstorage/example/example.c -I cmd/libpstorage -L bin -lpstorage
 *     LD_LIBRARY_PATH=bin PSTORAGE_ETC=... ./example CLUSTER /file
 *
 * Exit status 0 and a line "ok ..." if all is well.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pstorage.h"

enum { BLOCK = 4096, DEPTH = 32, BLOCKS = 2048 };

#define CHECK(call)                                                         \
    do {                                                                    \
        long long rc_ = (call);                                             \
        if (rc_ < 0) {                                                      \
            fprintf(stderr, "%s: %s (%s)\n", #call, strerror((int)-rc_), ps_error()); \
            exit(1);                                                        \
        }                                                                   \
    } while (0)

/* What a block holds: its number, all over. */
static void fill(unsigned *block, unsigned number) {
    for (int i = 0; i < BLOCK / (int)sizeof *block; i++) block[i] = number * 2654435761u + i;
}

/* Writes all blocks; done functions submit the next one, on the library's thread. */
struct writer {
    ps_file *file;
    unsigned next; /* only the library's thread touches it, after the start */
    atomic_int left, failed;
};

static void written(ps_op *op) {
    struct writer *w = op->user;
    if (op->result != BLOCK) atomic_store(&w->failed, (int)op->result);
    if (w->next < BLOCKS && !atomic_load(&w->failed)) {
        fill(op->buf, w->next);
        op->offset = (uint64_t)w->next++ * BLOCK;
        if (ps_submit(w->file, op) == 0) return;
        atomic_store(&w->failed, -1);
    }
    atomic_fetch_sub(&w->left, 1);
}

static void write_all(ps_file *file) {
    static ps_op ops[DEPTH];
    static unsigned buf[DEPTH][BLOCK / sizeof(unsigned)];
    struct writer w = {.file = file, .next = DEPTH};
    atomic_store(&w.left, DEPTH);
    for (unsigned i = 0; i < DEPTH; i++) {
        fill(buf[i], i);
        ops[i] = (ps_op){.kind = PS_WRITE, .offset = (uint64_t)i * BLOCK, .length = BLOCK,
                         .buf = buf[i], .done = written, .user = &w};
        CHECK(ps_submit(file, &ops[i]));
    }
    while (atomic_load(&w.left) > 0) poll(NULL, 0, 1);
    CHECK(atomic_load(&w.failed));
}

/* Reads all blocks; ends are fetched with ps_poll after poll(2) said that there are some. */
static int read_all(ps_cluster *cluster, ps_file *file) {
    static ps_op ops[DEPTH];
    static unsigned buf[DEPTH][BLOCK / sizeof(unsigned)];
    unsigned next = 0, flying = 0, bad = 0;
    for (; next < DEPTH; next++, flying++) {
        ops[next] = (ps_op){.kind = PS_READ, .offset = (uint64_t)next * BLOCK, .length = BLOCK,
                            .buf = buf[next]};
        CHECK(ps_submit(file, &ops[next]));
    }
    while (flying > 0) {
        struct pollfd p = {.fd = ps_poll_fd(cluster), .events = POLLIN};
        if (poll(&p, 1, 10000) != 1) {
            fprintf(stderr, "nothing ended in 10 s\n");
            return -1;
        }
        ps_op *ended[8];
        int n = ps_poll(cluster, ended, 8, 0);
        CHECK(n);
        for (int i = 0; i < n; i++) {
            ps_op *op = ended[i];
            unsigned want[BLOCK / sizeof(unsigned)];
            fill(want, (unsigned)(op->offset / BLOCK));
            if (op->result != BLOCK || memcmp(want, op->buf, BLOCK) != 0) bad++;
            flying--;
            if (next < BLOCKS) {
                op->offset = (uint64_t)next++ * BLOCK;
                CHECK(ps_submit(file, op));
                flying++;
            }
        }
    }
    return (int)bad;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s CLUSTER /file\n", argv[0]);
        return 2;
    }
    ps_cluster *cluster;
    ps_file *file;
    CHECK(ps_open(argv[1], NULL, 10000, &cluster));
    CHECK(ps_file_open(cluster, argv[2], PS_CREATE, (uint64_t)BLOCKS * BLOCK, &file));
    CHECK(ps_size(file) - (int64_t)BLOCKS * BLOCK);

    write_all(file);
    CHECK(ps_flush(file));
    int bad = read_all(cluster, file);
    if (bad) {
        fprintf(stderr, "%d blocks aren't what was written\n", bad);
        return 1;
    }

    /* The same, waiting; and what the errors look like. */
    char text[6] = "", zeros[BLOCK] = {0}, block[BLOCK];
    CHECK(ps_pwrite(file, "hello", 6, 12345));
    CHECK(ps_pread(file, text, 6, 12345));
    CHECK(ps_discard(file, BLOCK, 0));
    CHECK(ps_pread(file, block, BLOCK, 0));
    if (strcmp(text, "hello") != 0 || memcmp(block, zeros, BLOCK) != 0) {
        fprintf(stderr, "a small write or a discard didn't work\n");
        return 1;
    }
    ps_file *none;
    if (ps_file_open(cluster, "/no/such/file", 0, 0, &none) != -ENOENT || ps_error()[0] == 0 ||
        ps_pread(file, NULL, 10, 0) != -EINVAL || ps_close(cluster) != -EBUSY ||
        ps_pread(file, block, BLOCK, (uint64_t)BLOCKS * BLOCK - 96) != 96) {
        fprintf(stderr, "an error isn't what it should be: %s\n", ps_error());
        return 1;
    }
    CHECK(ps_file_close(file));
    CHECK(ps_close(cluster));
    printf("ok %d blocks\n", BLOCKS);
    return 0;
}
