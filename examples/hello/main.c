#include <stdio.h>

int main(void) {
    puts("hello from the slipway");
    return 0;
}
