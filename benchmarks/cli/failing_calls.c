/* A library to preload: chosen system calls on files below a folder fail, or do less than they were asked for.

cc -shared -fPIC -O1 -o failing.so failing_calls.c -ldl; `failing_calls.py` says in the process itself what is to fail. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, READ = 4, WRITE = 8, SYNC = 16, RENAME = 32, TRUNCATE = 64, LOCK = 128 };

static char under[4096];
static int what, number, first, step, half;
static atomic_int count;

/* Of the calls of `kinds` on files below `folder`, number `from` and every `every`-th after it (0: that one alone) fails with
   `error`; where that is 0, half of what was asked is done. `from` below 0: none fails. */
void failing_set(const char *folder, int kinds, int error, int from, int every) {
    strncpy(under, folder, sizeof under - 1);
    what = kinds, number = error, first = from, step = every, half = error == 0;
    atomic_store(&count, 0);
}

/* How many calls there were that could have failed. */
int failing_count(void) { return atomic_load(&count); }

static int is_below(const char *path) {
    size_t size = strlen(under);
    char here[4096];
    if (!size || !path) return 0;
    if (path[0] != '/') {
        if (syscall(SYS_getcwd, here, sizeof here) < 0) return 0;
        path = here;
    }
    return !strncmp(path, under, size);
}

static int is_below_fd(int file) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    long size = syscall(SYS_readlink, name, path, sizeof path - 1);
    if (size < 0 || path[0] != '/') return 0;
    path[size] = 0;
    return is_below(path);
}

static int strikes(int kind, int below) {
    if (!(what & kind) || !below) return 0;
    int at = atomic_fetch_add(&count, 1);
    if (first < 0 || at < first || (step ? (at - first) % step : at != first)) return 0;
    errno = number;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPENS(name)                                                                                  \
    int name(const char *path, int flags, ...) {                                                     \
        va_list list;                                                                                \
        va_start(list, flags);                                                                       \
        int mode = va_arg(list, int);                                                                \
        va_end(list);                                                                                \
        int kind = flags & (O_CREAT | O_WRONLY | O_RDWR) ? CREATE : OPEN;                            \
        return (what & kind) && strikes(kind, is_below(path)) ? -1 : REAL(name)(path, flags, mode);  \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                                     \
    int name(int place, const char *path, int flags, ...) {                                                \
        va_list list;                                                                                      \
        va_start(list, flags);                                                                             \
        int mode = va_arg(list, int);                                                                      \
        va_end(list);                                                                                      \
        int kind = flags & (O_CREAT | O_WRONLY | O_RDWR) ? CREATE : OPEN;                                  \
        return (what & kind) && strikes(kind, is_below(path)) ? -1 : REAL(name)(place, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

static size_t cut(size_t size) { return size > 1 ? (size + 1) / 2 : size; }

#define MOVES(name, kind, type)                                              \
    ssize_t name(int file, type data, size_t size) {                         \
        if ((what & kind) && size && strikes(kind, is_below_fd(file))) {     \
            if (!half) return -1;                                            \
            size = cut(size);                                                \
        }                                                                    \
        return REAL(name)(file, data, size);                                 \
    }
MOVES(read, READ, void *)
MOVES(write, WRITE, const void *)

#define MOVES_AT(name, kind, type, offset)                                   \
    ssize_t name(int file, type data, size_t size, offset at) {              \
        if ((what & kind) && size && strikes(kind, is_below_fd(file))) {     \
            if (!half) return -1;                                            \
            size = cut(size);                                                \
        }                                                                    \
        return REAL(name)(file, data, size, at);                             \
    }
MOVES_AT(pread, READ, void *, off_t)
MOVES_AT(pread64, READ, void *, off64_t)
MOVES_AT(pwrite, WRITE, const void *, off_t)
MOVES_AT(pwrite64, WRITE, const void *, off64_t)

ssize_t writev(int file, const struct iovec *parts, int number_of_parts) {
    if ((what & WRITE) && strikes(WRITE, is_below_fd(file))) {
        if (!half) return -1;
        return REAL(writev)(file, parts, number_of_parts > 1 ? number_of_parts / 2 : 1);
    }
    return REAL(writev)(file, parts, number_of_parts);
}

#define ON_FILE(name, kind, ...)                                                                       \
    return (what & kind) && strikes(kind, is_below_fd(file)) && !half ? -1 : REAL(name)(__VA_ARGS__)
int fsync(int file) { ON_FILE(fsync, SYNC, file); }
int fdatasync(int file) { ON_FILE(fdatasync, SYNC, file); }
int ftruncate(int file, off_t size) { ON_FILE(ftruncate, TRUNCATE, file, size); }
int ftruncate64(int file, off64_t size) { ON_FILE(ftruncate64, TRUNCATE, file, size); }
int flock(int file, int operation) { ON_FILE(flock, LOCK, file, operation); }
int posix_fallocate(int file, off_t at, off_t size) {
    return (what & TRUNCATE) && strikes(TRUNCATE, is_below_fd(file)) && !half ? number : REAL(posix_fallocate)(file, at, size);
}

#define LOCKS(name)                                                                                         \
    int name(int file, int command, ...) {                                                                  \
        va_list list;                                                                                       \
        va_start(list, command);                                                                            \
        void *more = va_arg(list, void *);                                                                  \
        va_end(list);                                                                                       \
        int is_lock = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW; \
        if (is_lock && (what & LOCK) && strikes(LOCK, is_below_fd(file)) && !half) return -1;               \
        return REAL(name)(file, command, more);                                                             \
    }
LOCKS(fcntl)
LOCKS(fcntl64)

#define ON_PATH(name, kind, path, ...)                                                              \
    return (what & kind) && strikes(kind, is_below(path)) && !half ? -1 : REAL(name)(__VA_ARGS__)
int truncate(const char *path, off_t size) { ON_PATH(truncate, TRUNCATE, path, path, size); }
int truncate64(const char *path, off64_t size) { ON_PATH(truncate64, TRUNCATE, path, path, size); }
int rename(const char *from, const char *to) { ON_PATH(rename, RENAME, to, from, to); }
int renameat(int a, const char *from, int b, const char *to) { ON_PATH(renameat, RENAME, to, a, from, b, to); }
