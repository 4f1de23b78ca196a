/* What is asked of a mapping on every system, before its own calls. */
#include "error.h"
#include "platform.h"

retnet_status part_of_file(uint64_t bytes, uint64_t offset, uint64_t page, uint64_t *size,
                           uint64_t *before, retnet_error *error) {
    if (offset > bytes || *size > bytes - offset)
        return fail(error, RETNET_NO_FILE, NO_OFFSET,
                    "bytes %llu to %llu were asked for of a file of %llu",
                    (unsigned long long)offset, (unsigned long long)(offset + *size),
                    (unsigned long long)bytes);
    if (offset % RETNET_BUFFER_ALIGN)
        return fail(error, RETNET_NO_FILE, NO_OFFSET,
                    "the model begins at byte %llu of its file; a multiple of %d is needed",
                    (unsigned long long)offset, RETNET_BUFFER_ALIGN);
    if (!*size) *size = bytes - offset;
    if (!*size) return fail(error, RETNET_BAD_FILE, 0, "the file is empty");
    *before = offset % page;
    if (*size > SIZE_MAX - *before)
        return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no room for a file of %llu bytes",
                    (unsigned long long)*size);
    return RETNET_OK;
}
