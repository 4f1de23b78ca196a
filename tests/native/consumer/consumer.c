/* A user of the installed library, in C and in C++: opens what it is given, and says how that went. */
#include <retnet.h>
#include <stdio.h>

int main(int count, char **words) {
    retnet_model *model = NULL;
    retnet_error error;
    if (count != 2) return 2;
    const retnet_status status = retnet_model_open(words[1], 0, &model, &error);
    printf("%s %d %s\n", retnet_version(), (int)status, error.message);
    retnet_model_close(model);
    return 0;
}
