#include "tokenizer.h"

#include <stdio.h>

#include "retnet.h"

int tokenizer_open(const void *table, size_t size, int32_t vocab_size, Tokenizer **tokenizer,
                   char *error, size_t error_size) {
    (void)table, (void)size, (void)vocab_size;
    *tokenizer = NULL;
    snprintf(error, error_size, "this library was built without tokenizers");
    return RETNET_BAD_FILE;
}

void tokenizer_free(Tokenizer *tokenizer) { (void)tokenizer; }
