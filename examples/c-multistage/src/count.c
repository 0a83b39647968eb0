#include "count.h"

#include <ctype.h>

struct count count_stream(FILE *in) {
    struct count total = {0, 0, 0};
    int in_word = 0;
    for (int c = getc(in); c != EOF; c = getc(in)) {
        total.bytes++;
        if (c == '\n')
            total.lines++;
        if (isspace(c)) {
            in_word = 0;
        } else if (!in_word) {
            in_word = 1;
            total.words++;
        }
    }
    return total;
}
