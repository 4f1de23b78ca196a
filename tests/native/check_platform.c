/* What the operating system gives (native/platform.h), in the folder that it runs in. Built and run
 * by CMake (RETNET_BUILD_TESTS) and test_builds.py; writes what is wrong, and exits with 1. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../native/platform.h"

#if defined(_WIN32)
#include <io.h>
#define open _open
#define close _close
#define FLAGS (_O_RDONLY | _O_BINARY)
#else
#include <unistd.h>
#define FLAGS O_RDONLY
#endif

enum { FAR = 3 * 65536 + 64, SIZE = FAR + 1000 };

/* UTF-8, as every path is: "prüfung-✓.bin" */
static const char NAME[] = "pr\xc3\xbc" "fung-\xe2\x9c\x93.bin";
static int failures = 0;

static void expect(int holds, const char *what) {
    if (holds) return;
    failures++;
    printf("%s\n", what);
}

static void expect_sentence(retnet_status status, retnet_status expected, const retnet_error *error,
                            const char *part) {
    if (status == expected && error->code == (int32_t)expected && strstr(error->message, part))
        return;
    failures++;
    printf("%d, not %d; \"%s\", not \"%s\"\n", (int)status, (int)expected, error->message, part);
}

static void check_files(const uint8_t *bytes) {
    retnet_error error;
    Mapping m;
    const Piece first = {"old", 3}, pieces[] = {{bytes, 100}, {bytes, 0}, {bytes + 100, SIZE - 100}};
    expect(!replace_file(NAME, &first, 1, &error), "a new file");
    expect(!map_path(NAME, &m, &error) && m.size == 3 && !memcmp(m.data, "old", 3), "three bytes");
    unmap(&m);
    expect(!replace_file(NAME, pieces, 3, &error), "another in its place");
    expect(!map_path(NAME, &m, &error) && m.size == SIZE && !memcmp(m.data, bytes, SIZE), "its bytes");
    unmap(&m);
    unmap(&m); /* nothing */
    expect_sentence(map_path("no such file", &m, &error), RETNET_NO_FILE, &error,
                    "no such file cannot be opened: there is no such file");
    expect(map_path(".", &m, &error) == RETNET_NO_FILE, "a folder");
    expect(replace_file("no such folder/a", &first, 1, &error) == RETNET_NO_FILE, "nowhere");
    expect(replace_file(".", &first, 1, &error) == RETNET_NO_FILE, "a folder's place");
}

static void check_parts(const uint8_t *bytes) {
    retnet_error error;
    Mapping m;
    expect(map_fd(-1, 0, 0, &m, &error) == RETNET_NO_FILE, "no descriptor");
    expect(map_fd(1000, 0, 0, &m, &error) == RETNET_NO_FILE, "a descriptor of nothing");
#if !defined(_WIN32) /* whose own open takes no UTF-8 */
    const int fd = open(NAME, FLAGS);
#else
    const int fd = _wopen(L"pr\u00fcfung-\u2713.bin", FLAGS);
#endif
    expect(fd >= 0, "open");
    expect(!map_fd(fd, FAR, 0, &m, &error) && m.size == SIZE - FAR &&
               !memcmp(m.data, bytes + FAR, SIZE - FAR), "the rest");
    expect((uintptr_t)m.data % RETNET_BUFFER_ALIGN == 0, "where the rest begins");
    unmap(&m);
    expect(!map_fd(fd, 64, 200, &m, &error) && m.size == 200 && !memcmp(m.data, bytes + 64, 200),
           "a part");
    unmap(&m);
    expect_sentence(map_fd(fd, 32, 0, &m, &error), RETNET_NO_FILE, &error, "a multiple of 64");
    expect_sentence(map_fd(fd, 64, SIZE, &m, &error), RETNET_NO_FILE, &error, "were asked for");
    expect_sentence(map_fd(fd, UINT64_MAX - 63, 0, &m, &error), RETNET_NO_FILE, &error,
                    "were asked for");
    expect_sentence(map_fd(fd, 64, UINT64_MAX, &m, &error), RETNET_NO_FILE, &error,
                    "were asked for");
    close(fd);
    const Piece none = {bytes, 0};
    expect(!replace_file(NAME, &none, 1, &error), "an empty file");
    expect_sentence(map_path(NAME, &m, &error), RETNET_BAD_FILE, &error, "the file is empty");
#if defined(_WIN32)
    expect_sentence(map_path("pr\xfc" "fung", &m, &error), RETNET_NO_FILE, &error, "not UTF-8");
    expect(!_wremove(L"pr\u00fcfung-\u2713.bin"), "removed");
#else
    expect(!remove(NAME), "removed");
#endif
}

static void check_memory(void) {
    const uint64_t sizes[] = {0, 1, 64, 1000000};
    for (int i = 0; i < 4; i++) {
        uint8_t *memory = allocate_aligned(sizes[i]);
        expect(memory && (uintptr_t)memory % 64 == 0, "aligned memory");
        if (memory) memset(memory, 1, (size_t)sizes[i]);
        free_aligned(memory);
    }
    expect(!allocate_aligned(UINT64_MAX) && !allocate_aligned(INT64_MAX), "all memory");
    free_aligned(NULL);
    double last = monotonic_seconds();
    for (int i = 0; i < 1000; i++) {
        const double next = monotonic_seconds();
        expect(next >= last, "a clock that goes back");
        last = next;
    }
}

int main(void) {
    uint8_t *bytes = malloc(SIZE);
    if (!bytes) return 2;
    for (int i = 0; i < SIZE; i++) bytes[i] = (uint8_t)(i * 7 + i / 251);
    check_files(bytes);
    check_parts(bytes);
    check_memory();
    free(bytes);
    return failures > 0;
}
