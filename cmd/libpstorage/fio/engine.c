/* SPDX-License-Identifier: GPL-2.0-only
 *
 * An I/O engine of fio for files of a pstorage cluster, through libpstorage. It includes headers
 * of fio and so has fio's license; the rest of the project doesn't include it.
 *
 *     make fio-engine                      # bin/fio-pstorage.so, for the fio that is installed
 *     PSTORAGE_ETC=... LD_LIBRARY_PATH=bin fio --name=t --ioengine=external:bin/fio-pstorage.so \
 *         --thread --cluster=NAME --filename=/file --size=1G --rw=randread --iodepth=32
 *
 * filename is a path in the cluster. A job that writes makes the file if it isn't there, and
 * makes it as long as size says; it isn't laid out. --thread is needed: the library has threads of
 * its own, which a fork would leave behind.
 *
 * All jobs of a process that name the same cluster share one connection, so that they may write
 * the same file. An operation ends on the library's thread, which puts it into the list of its job;
 * the job's thread takes the whole list at once, and is woken only if it sleeps.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fio.h"
#include "optgroup.h"

#include "pstorage.h"

#define OPEN_MS 10000 /* for the metadata servers to answer */

struct options {
    void *pad; /* fio takes an offset of 0 for none */
    char *cluster;
    char *etc;
};

static struct fio_option options[] = {
    {
        .name = "cluster",
        .lname = "pstorage cluster",
        .type = FIO_OPT_STR_STORE,
        .off1 = offsetof(struct options, cluster),
        .help = "Name of the cluster; may be left out when this machine belongs to one only",
        .category = FIO_OPT_C_ENGINE,
        .group = FIO_OPT_G_INVALID,
    },
    {
        .name = "etc",
        .lname = "pstorage configuration",
        .type = FIO_OPT_STR_STORE,
        .off1 = offsetof(struct options, etc),
        .help = "Directory of the configuration; default $PSTORAGE_ETC, or /etc/pstorage",
        .category = FIO_OPT_C_ENGINE,
        .group = FIO_OPT_G_INVALID,
    },
    {
        .name = NULL,
    },
};

/* A connection, shared by the jobs that name the same cluster. */
struct link {
    struct link *next;
    char *cluster, *etc; /* NULL: not given */
    ps_cluster *ps;
    int users;
};

static pthread_mutex_t links_mu = PTHREAD_MUTEX_INITIALIZER; /* guards links and users */
static struct link *links;

/* What a job has. */
struct job {
    struct link *link;
    struct io_u **events; /* iodepth of them: what getevents found */
    _Atomic(struct request *) ended; /* newest first */
    struct request *taken;           /* out of ended, not given to fio yet */
    atomic_int sleeping;
    atomic_int ending; /* calls of request_done that may still touch the job */
    sem_t wake;
};

/* An operation; one for each io_u. */
struct request {
    ps_op op;
    struct io_u *io_u;
    struct job *job;
    struct request *next;
};

static int same(const char *a, const char *b) { return a && b ? !strcmp(a, b) : a == b; }

static struct link *link_open(const char *cluster, const char *etc) {
    struct link *l;
    int rc;

    pthread_mutex_lock(&links_mu);
    for (l = links; l; l = l->next)
        if (same(l->cluster, cluster) && same(l->etc, etc)) goto found;
    l = calloc(1, sizeof *l);
    if (!l) goto failed;
    l->cluster = cluster ? strdup(cluster) : NULL;
    l->etc = etc ? strdup(etc) : NULL;
    if ((cluster && !l->cluster) || (etc && !l->etc)) goto failed;
    rc = ps_open(cluster, etc, OPEN_MS, &l->ps);
    if (rc < 0) {
        log_err("fio: pstorage: %s\n", ps_error());
        goto failed;
    }
    l->next = links;
    links = l;
found:
    l->users++;
    pthread_mutex_unlock(&links_mu);
    return l;
failed:
    pthread_mutex_unlock(&links_mu);
    if (l) {
        free(l->cluster);
        free(l->etc);
        free(l);
    }
    return NULL;
}

static void link_close(struct link *l) {
    struct link **at;

    pthread_mutex_lock(&links_mu);
    if (--l->users > 0) {
        pthread_mutex_unlock(&links_mu);
        return;
    }
    for (at = &links; *at != l; at = &(*at)->next) {
    }
    *at = l->next;
    pthread_mutex_unlock(&links_mu);
    if (ps_close(l->ps) < 0) log_err("fio: pstorage: %s\n", ps_error());
    free(l->cluster);
    free(l->etc);
    free(l);
}

/* Opens a file; a job that writes makes it as long as the job needs it. */
static int file_open(struct thread_data *td, struct link *l, const char *name, ps_file **file) {
    uint64_t size = td->o.start_offset + td->o.size;
    int writes = td_write(td) || td_trim(td);
    int rc = ps_file_open(l->ps, name, writes ? PS_CREATE : 0, size, file);

    if (rc == 0 && writes && ps_size(*file) < (int64_t)size) {
        rc = ps_grow(*file, size);
        if (rc < 0) {
            log_err("fio: pstorage: %s\n", ps_error());
            ps_file_close(*file);
            return rc;
        }
    } else if (rc < 0) {
        log_err("fio: pstorage: %s\n", ps_error());
    }
    return rc;
}

/* Learns the sizes of the files, before the job's thread exists. */
static int engine_setup(struct thread_data *td) {
    struct options *o = td->eo;
    struct fio_file *f;
    struct link *l;
    unsigned int i;

    if (!td->o.use_thread) {
        log_err("fio: pstorage: the job needs thread=1: libpstorage can't be used after a fork\n");
        return 1;
    }
    for_each_file(td, f, i) if (f->file_name[0] != '/') {
        /* fio makes up a name where none is given */
        log_err("fio: pstorage: filename=%s: a path in the cluster begins with a slash\n",
                f->file_name);
        return 1;
    }
    l = link_open(o->cluster, o->etc);
    if (!l) return 1;
    for_each_file(td, f, i) {
        ps_file *file;
        int64_t size;

        if (file_open(td, l, f->file_name, &file) < 0) goto failed;
        size = ps_size(file);
        if (ps_file_close(file) < 0 || size < 0) {
            log_err("fio: pstorage: %s\n", ps_error());
            goto failed;
        }
        f->real_file_size = size;
        fio_file_set_size_known(f);
    }
    link_close(l);
    return 0;
failed:
    link_close(l);
    return 1;
}

static void job_free(struct job *j) {
    if (j->link) link_close(j->link);
    while (atomic_load(&j->ending)) sched_yield();
    sem_destroy(&j->wake);
    free(j->events);
    free(j);
}

static int engine_init(struct thread_data *td) {
    struct options *o = td->eo;
    struct job *j = calloc(1, sizeof *j);

    if (!j) return 1;
    sem_init(&j->wake, 0, 0);
    j->events = calloc(td->o.iodepth, sizeof *j->events);
    if (j->events) j->link = link_open(o->cluster, o->etc);
    if (!j->link) {
        job_free(j);
        return 1;
    }
    td->io_ops_data = j;
    return 0;
}

static void engine_cleanup(struct thread_data *td) {
    if (td->io_ops_data) job_free(td->io_ops_data);
    td->io_ops_data = NULL;
}

static int engine_open(struct thread_data *td, struct fio_file *f) {
    struct job *j = td->io_ops_data;
    ps_file *file;

    if (file_open(td, j->link, f->file_name, &file) < 0) return 1;
    FILE_SET_ENG_DATA(f, file);
    return 0;
}

static int engine_close(struct thread_data *td, struct fio_file *f) {
    ps_file *file = FILE_ENG_DATA(f);
    int rc = 0;

    if (file && (rc = ps_file_close(file)) < 0) log_err("fio: pstorage: %s\n", ps_error());
    FILE_SET_ENG_DATA(f, NULL);
    return rc < 0;
}

/* There is no cache of this machine in between. */
static int engine_invalidate(struct thread_data *td, struct fio_file *f) { return 0; }

/*
 * Called on the library's thread. Once r is in the list it is the job's, which may end before this
 * function does: ending keeps its memory.
 */
static void request_done(ps_op *op) {
    struct request *r = (struct request *)op;
    struct job *j = r->job;
    struct request *head = atomic_load_explicit(&j->ended, memory_order_relaxed);

    atomic_fetch_add(&j->ending, 1);
    do {
        r->next = head;
    } while (!atomic_compare_exchange_weak(&j->ended, &head, r));
    if (atomic_exchange(&j->sleeping, 0)) sem_post(&j->wake);
    atomic_fetch_sub(&j->ending, 1);
}

static int engine_io_u_init(struct thread_data *td, struct io_u *io_u) {
    struct request *r = calloc(1, sizeof *r);

    if (!r) return ENOMEM;
    r->io_u = io_u;
    r->job = td->io_ops_data;
    r->op.done = request_done;
    io_u->engine_data = r;
    return 0;
}

static void engine_io_u_free(struct thread_data *td, struct io_u *io_u) {
    free(io_u->engine_data);
    io_u->engine_data = NULL;
}

static enum fio_q_status engine_queue(struct thread_data *td, struct io_u *io_u) {
    struct request *r = io_u->engine_data;
    int rc;

    fio_ro_check(td, io_u);
    r->op.offset = io_u->offset;
    r->op.length = io_u->xfer_buflen;
    r->op.buf = io_u->xfer_buf;
    switch (io_u->ddir) {
    case DDIR_READ:
        r->op.kind = PS_READ;
        break;
    case DDIR_WRITE:
        r->op.kind = PS_WRITE;
        break;
    case DDIR_TRIM:
        r->op.kind = PS_DISCARD;
        break;
    case DDIR_SYNC:
    case DDIR_DATASYNC:
        r->op.kind = PS_FLUSH;
        r->op.offset = r->op.length = 0;
        break;
    default:
        io_u->error = EOPNOTSUPP;
        return FIO_Q_COMPLETED;
    }
    rc = ps_submit(FILE_ENG_DATA(io_u->file), &r->op);
    if (rc < 0) {
        io_u->error = -rc;
        return FIO_Q_COMPLETED;
    }
    return FIO_Q_QUEUED;
}

/* Moves what has ended to taken. */
static int take(struct job *j) {
    if (!j->taken) j->taken = atomic_exchange(&j->ended, NULL);
    return j->taken != NULL;
}

/* Waits until something has ended; -ETIMEDOUT if nothing has at the time until. */
static int await(struct job *j, const struct timespec *until) {
    int rc = 0;

    atomic_store(&j->sleeping, 1);
    if (atomic_load(&j->ended)) {
        /* If the other side has seen that we sleep, its post is on the way. */
        if (!atomic_exchange(&j->sleeping, 0))
            while (sem_wait(&j->wake) && errno == EINTR) {
            }
        return 0;
    }
    do {
        rc = until ? sem_timedwait(&j->wake, until) : sem_wait(&j->wake);
    } while (rc && errno == EINTR);
    if (rc && !atomic_exchange(&j->sleeping, 0))
        while (sem_wait(&j->wake) && errno == EINTR) {
        }
    return rc ? -ETIMEDOUT : 0;
}

static int engine_getevents(struct thread_data *td, unsigned int min, unsigned int max,
                            const struct timespec *t) {
    struct job *j = td->io_ops_data;
    struct timespec until, *limit = NULL;
    unsigned int n = 0;

    if (t) {
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += t->tv_sec;
        until.tv_nsec += t->tv_nsec;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        limit = &until;
    }
    for (;;) {
        while (n < max && take(j)) {
            struct request *r = j->taken;
            struct io_u *u = r->io_u;

            j->taken = r->next;
            u->error = r->op.result < 0 ? -r->op.result : 0;
            u->resid = 0;
            if (!u->error && (r->op.kind == PS_READ || r->op.kind == PS_WRITE))
                u->resid = u->xfer_buflen - r->op.result;
            j->events[n++] = u;
        }
        if (n >= min || await(j, limit)) return n;
    }
}

static struct io_u *engine_event(struct thread_data *td, int event) {
    struct job *j = td->io_ops_data;

    return j->events[event];
}

/* fio looks for this name in the library. */
struct ioengine_ops ioengine = {
    .name = "pstorage",
    .version = FIO_IOOPS_VERSION,
    .flags = FIO_DISKLESSIO | FIO_NOEXTEND | FIO_NODISKUTIL,
    .setup = engine_setup,
    .init = engine_init,
    .cleanup = engine_cleanup,
    .open_file = engine_open,
    .close_file = engine_close,
    .invalidate = engine_invalidate,
    .io_u_init = engine_io_u_init,
    .io_u_free = engine_io_u_free,
    .queue = engine_queue,
    .getevents = engine_getevents,
    .event = engine_event,
    .option_struct_size = sizeof(struct options),
    .options = options,
};
