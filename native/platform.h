/* What the operating system gives, beside threads (pool.c). */
#ifndef RETNET_PLATFORM_H
#define RETNET_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

#include "retnet.h"

/* Of what is mapped: the file has alignments of its own, which hold only from here on. */
enum { RETNET_BUFFER_ALIGN = 64 };

/* A part of a file, mapped for reading: `size` bytes at `data`. */
typedef struct {
    const uint8_t *data;
    uint64_t size;
    void *base; /* of the pages that it lies in */
    size_t mapped;
} Mapping;

/* Map `size` bytes (0: what is left) of an open regular file from `offset` on. RETNET_OK,
 * RETNET_NO_FILE. */
retnet_status map_fd(int fd, uint64_t offset, uint64_t size, Mapping *mapping,
                     retnet_error *error);
retnet_status map_path(const char *path, Mapping *mapping, retnet_error *error);
void unmap(Mapping *mapping);

/* The part that is asked for of a file of `bytes`: its size in place of 0, and what lies before it
 * in its first page. RETNET_OK, or what map_fd returns. */
retnet_status part_of_file(uint64_t bytes, uint64_t offset, uint64_t page, uint64_t *size,
                           uint64_t *before, retnet_error *error);

/* Write pieces one after the other to `path`, whole or not at all: into a new file beside it, which
 * then takes its place. RETNET_OK, RETNET_NO_FILE, RETNET_NO_MEMORY. */
typedef struct {
    const void *data;
    size_t size;
} Piece;
retnet_status replace_file(const char *path, const Piece *pieces, size_t count,
                           retnet_error *error);

/* Seconds of a clock that never goes back. */
double monotonic_seconds(void);

/* `bytes` aligned to a cache line, for `free_aligned`; NULL where there are not so many. */
void *allocate_aligned(uint64_t bytes);
void free_aligned(void *memory);

#endif
