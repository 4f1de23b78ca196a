/* POSIX here; Windows in platform_windows.c. */
#if !defined(_WIN32)
#define _GNU_SOURCE
#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

enum { CACHE_LINE = 64, TRIES = 100 };

static retnet_status system_failed(retnet_error *error, const char *path, const char *what) {
    char reason[64] = "unknown";
    const int number = errno;
    switch (number) { /* strerror is not safe in threads */
    case ENOENT: snprintf(reason, sizeof reason, "there is no such file"); break;
    case EACCES: snprintf(reason, sizeof reason, "permission denied"); break;
    case EISDIR: snprintf(reason, sizeof reason, "it is a directory"); break;
    case ENOTDIR: snprintf(reason, sizeof reason, "a part of the path is not a directory"); break;
    case ENOSPC: snprintf(reason, sizeof reason, "the disk is full"); break;
    case EROFS: snprintf(reason, sizeof reason, "the disk is read-only"); break;
    default: snprintf(reason, sizeof reason, "system error %d", number);
    }
    return fail(error, RETNET_NO_FILE, NO_OFFSET, "%.160s cannot be %s: %s", path, what, reason);
}

retnet_status map_fd(int fd, uint64_t offset, uint64_t size, Mapping *mapping,
                     retnet_error *error) {
    *mapping = (Mapping){0};
    struct stat status;
    if (fstat(fd, &status)) return system_failed(error, "the file", "looked at");
    if (!S_ISREG(status.st_mode))
        return fail(error, RETNET_NO_FILE, NO_OFFSET, "a packed model has to be a regular file");
    const uint64_t bytes = (uint64_t)status.st_size;
    uint64_t before;
    const retnet_status wrong = part_of_file(bytes, offset, (uint64_t)sysconf(_SC_PAGESIZE), &size,
                                             &before, error);
    if (wrong) return wrong;
    const size_t mapped = (size_t)(size + before);
    void *base = mmap(NULL, mapped, PROT_READ, MAP_SHARED, fd, (off_t)(offset - before));
    if (base == MAP_FAILED) return system_failed(error, "the file", "mapped");
    *mapping = (Mapping){(const uint8_t *)base + before, size, base, mapped};
    return RETNET_OK;
}

retnet_status map_path(const char *path, Mapping *mapping, retnet_error *error) {
    *mapping = (Mapping){0};
    /* a FIFO that nobody writes to must not keep us */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return system_failed(error, path, "opened");
    const retnet_status status = map_fd(fd, 0, 0, mapping, error);
    close(fd);
    return status;
}

void unmap(Mapping *mapping) {
    if (mapping->base) munmap(mapping->base, mapping->mapped);
    *mapping = (Mapping){0};
}

static int write_all(int fd, const Piece *pieces, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const char *from = pieces[i].data;
        for (size_t left = pieces[i].size; left;) {
            const ssize_t written = write(fd, from, left);
            if (written < 0 && errno == EINTR) continue;
            if (written < 0) return 0;
            from += written;
            left -= (size_t)written;
        }
    }
    return fsync(fd) == 0;
}

retnet_status replace_file(const char *path, const Piece *pieces, size_t count,
                           retnet_error *error) {
    const size_t length = strlen(path);
    char *beside = malloc(length + 32);
    if (!beside) return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for a path");
    int fd = -1;
    for (int i = 0; i < TRIES && fd < 0; i++) {
        snprintf(beside, length + 32, "%s.%ld.%d.partial", path, (long)getpid(), i);
        fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    retnet_status status = RETNET_OK;
    if (fd < 0) status = system_failed(error, path, "written");
    else {
        const int written = write_all(fd, pieces, count);
        if (!written) status = system_failed(error, path, "written");
        if (close(fd) && written) status = system_failed(error, path, "written");
        if (status == RETNET_OK && rename(beside, path))
            status = system_failed(error, path, "replaced");
        if (status != RETNET_OK) unlink(beside);
    }
    free(beside);
    return status;
}

double monotonic_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

void *allocate_aligned(uint64_t bytes) {
    if (bytes > PTRDIFF_MAX - CACHE_LINE) return NULL;
    const size_t whole = ((size_t)bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    void *memory; /* aligned_alloc is not in Android before 9 */
    return posix_memalign(&memory, CACHE_LINE, whole ? whole : CACHE_LINE) ? NULL : memory;
}

void free_aligned(void *memory) { free(memory); }

#endif
