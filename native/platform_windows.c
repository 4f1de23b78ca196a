/* Windows here; POSIX in platform.c. Paths are UTF-8, as everywhere in the library. */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <io.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "platform.h"

enum { CACHE_LINE = 64, TRIES = 100, MOST_WRITTEN = 1 << 30 /* bytes of a call */ };

/* After a call that failed, with GetLastError() as it left it. */
static retnet_status system_failed(retnet_error *error, const char *path, const char *what) {
    const unsigned long number = GetLastError();
    char reason[64];
    switch (number) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND: snprintf(reason, sizeof reason, "there is no such file"); break;
    case ERROR_ACCESS_DENIED:
        snprintf(reason, sizeof reason, "permission denied, or it is a directory");
        break;
    case ERROR_SHARING_VIOLATION:
    case ERROR_USER_MAPPED_FILE: snprintf(reason, sizeof reason, "another program uses it"); break;
    case ERROR_INVALID_NAME: snprintf(reason, sizeof reason, "this is no name of a file"); break;
    case ERROR_DISK_FULL: snprintf(reason, sizeof reason, "the disk is full"); break;
    case ERROR_WRITE_PROTECT: snprintf(reason, sizeof reason, "the disk is read-only"); break;
    default: snprintf(reason, sizeof reason, "system error %lu", number);
    }
    return fail(error, RETNET_NO_FILE, NO_OFFSET, "%.160s cannot be %s: %s", path, what, reason);
}

/* The path in UTF-16, to be freed; NULL after a sentence. */
static wchar_t *wide_path(const char *path, retnet_status *status, retnet_error *error) {
    const int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, NULL, 0);
    if (length <= 0) {
        *status = fail(error, RETNET_NO_FILE, NO_OFFSET, "the path is not UTF-8");
        return NULL;
    }
    wchar_t *wide = malloc((size_t)length * sizeof *wide);
    if (!wide) {
        *status = fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for a path");
        return NULL;
    }
    MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, length);
    return wide;
}

static retnet_status map_handle(HANDLE file, uint64_t offset, uint64_t size, Mapping *mapping,
                                retnet_error *error) {
    LARGE_INTEGER length;
    if (GetFileType(file) != FILE_TYPE_DISK)
        return fail(error, RETNET_NO_FILE, NO_OFFSET, "a packed model has to be a regular file");
    if (!GetFileSizeEx(file, &length)) return system_failed(error, "the file", "looked at");
    const uint64_t bytes = (uint64_t)length.QuadPart;
    uint64_t before;
    SYSTEM_INFO system;
    GetSystemInfo(&system);
    const retnet_status wrong =
        part_of_file(bytes, offset, system.dwAllocationGranularity, &size, &before, error);
    if (wrong) return wrong;
    const uint64_t from = offset - before;
    const HANDLE pages = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
    if (!pages) return system_failed(error, "the file", "mapped");
    const size_t mapped = (size_t)(size + before);
    void *base = MapViewOfFile(pages, FILE_MAP_READ, (DWORD)(from >> 32), (DWORD)from, mapped);
    const retnet_status status = base ? RETNET_OK : system_failed(error, "the file", "mapped");
    CloseHandle(pages); /* the view keeps it */
    if (base) *mapping = (Mapping){(const uint8_t *)base + before, size, base, mapped};
    return status;
}

#if defined(_UCRT) || defined(_MSC_VER)
#if defined(__MINGW32__) /* whose library has it, and whose headers do not */
_invalid_parameter_handler __cdecl _set_thread_local_invalid_parameter_handler(
    _invalid_parameter_handler handler);
#endif
static void no_end(const wchar_t *expression, const wchar_t *function, const wchar_t *file,
                   unsigned line, uintptr_t reserved) {
    (void)expression, (void)function, (void)file, (void)line, (void)reserved;
}
#endif

/* The C library's own answer to a descriptor that is none would be to end the process. */
static HANDLE handle_of(int fd) {
    if (fd < 0) return INVALID_HANDLE_VALUE;
#if defined(_UCRT) || defined(_MSC_VER)
    const _invalid_parameter_handler before = _set_thread_local_invalid_parameter_handler(no_end);
    const HANDLE file = (HANDLE)_get_osfhandle(fd);
    _set_thread_local_invalid_parameter_handler(before);
    return file;
#else
    return (HANDLE)_get_osfhandle(fd);
#endif
}

retnet_status map_fd(int fd, uint64_t offset, uint64_t size, Mapping *mapping,
                     retnet_error *error) {
    *mapping = (Mapping){0};
    const HANDLE file = handle_of(fd);
    if (file == INVALID_HANDLE_VALUE)
        return fail(error, RETNET_NO_FILE, NO_OFFSET, "%d is not an open file", fd);
    return map_handle(file, offset, size, mapping, error);
}

retnet_status map_path(const char *path, Mapping *mapping, retnet_error *error) {
    *mapping = (Mapping){0};
    retnet_status status = RETNET_OK;
    wchar_t *wide = wide_path(path, &status, error);
    if (!wide) return status;
    const HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL,
                                    OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (file == INVALID_HANDLE_VALUE) status = system_failed(error, path, "opened");
    else {
        status = map_handle(file, 0, 0, mapping, error);
        CloseHandle(file);
    }
    free(wide);
    return status;
}

void unmap(Mapping *mapping) {
    if (mapping->base) UnmapViewOfFile(mapping->base);
    *mapping = (Mapping){0};
}

static int write_all(HANDLE file, const Piece *pieces, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const char *from = pieces[i].data;
        for (size_t left = pieces[i].size; left;) {
            const DWORD some = left < MOST_WRITTEN ? (DWORD)left : MOST_WRITTEN;
            DWORD written = 0;
            if (!WriteFile(file, from, some, &written, NULL)) return 0;
            from += written;
            left -= written;
        }
    }
    return FlushFileBuffers(file) != 0;
}

/* A new file beside `wide`, whose name goes to `beside`. */
static HANDLE new_file_beside(const wchar_t *wide, wchar_t *beside, size_t room) {
    for (int i = 0; i < TRIES; i++) {
        _snwprintf(beside, room, L"%ls.%lu.%d.partial", wide, GetCurrentProcessId(), i);
        beside[room - 1] = 0;
        const HANDLE file =
            CreateFileW(beside, GENERIC_WRITE, 0, NULL, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, NULL);
        if (file != INVALID_HANDLE_VALUE || GetLastError() != ERROR_FILE_EXISTS) return file;
    }
    return INVALID_HANDLE_VALUE;
}

retnet_status replace_file(const char *path, const Piece *pieces, size_t count,
                           retnet_error *error) {
    retnet_status status = RETNET_OK;
    wchar_t *wide = wide_path(path, &status, error);
    if (!wide) return status;
    const size_t room = wcslen(wide) + 32;
    wchar_t *beside = malloc(room * sizeof *beside);
    if (!beside) {
        free(wide);
        return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for a path");
    }
    const HANDLE file = new_file_beside(wide, beside, room);
    if (file == INVALID_HANDLE_VALUE) status = system_failed(error, path, "written");
    else {
        if (!write_all(file, pieces, count)) status = system_failed(error, path, "written");
        CloseHandle(file);
        if (status == RETNET_OK &&
            !MoveFileExW(beside, wide, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
            status = system_failed(error, path, "replaced");
        if (status != RETNET_OK) DeleteFileW(beside);
    }
    free(beside);
    free(wide);
    return status;
}

double monotonic_seconds(void) {
    LARGE_INTEGER ticks, each_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&each_second);
    return (double)ticks.QuadPart / (double)each_second.QuadPart;
}

void *allocate_aligned(uint64_t bytes) {
    if (bytes > PTRDIFF_MAX - CACHE_LINE) return NULL;
    const size_t whole = ((size_t)bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return _aligned_malloc(whole ? whole : CACHE_LINE, CACHE_LINE);
}

void free_aligned(void *memory) { _aligned_free(memory); }

#endif
