/* Text to token ids and back. */
#ifndef RETNET_TOKENIZER_H
#define RETNET_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

/* A tokenizer on its table, which stays where it is and must outlive it. RETNET_OK, RETNET_NO_MEMORY,
 * or RETNET_BAD_FILE with a sentence in `error`. */
int tokenizer_open(const void *table, size_t size, int32_t vocab_size, Tokenizer **tokenizer,
                   char *error, size_t error_size);
void tokenizer_free(Tokenizer *tokenizer);

#endif
