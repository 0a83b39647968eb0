/* Locks as many MiB of memory as its argument says, says so, and waits for the end of its input. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	size_t size = count > 1 ? (size_t)atol(arguments[1]) << 20 : 0;
	char *room = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room == MAP_FAILED || mlock(room, size) != 0) {
		perror("lock");
		return 1;
	}
	memset(room, 1, size);
	puts("locked");
	fflush(stdout);
	char byte;
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
