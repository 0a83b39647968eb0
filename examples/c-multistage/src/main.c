#include "count.h"

int main(int argc, char **argv) {
    FILE *in = stdin;
    if (argc > 1 && (in = fopen(argv[1], "rb")) == NULL) {
        perror(argv[1]);
        return 1;
    }
    struct count total = count_stream(in);
    printf("%lu %lu %lu\n", total.lines, total.words, total.bytes);
    return 0;
}
