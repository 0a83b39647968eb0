/* Makes system calls and prints what each gives, as lines "name=number". Without a library, for 64 and 32 bit x86. */

#if defined(__x86_64__)
enum { WRITE = 1, SOCKET = 41, SOCKETPAIR = 53, SETSOCKOPT = 54, ADD_KEY = 248, REQUEST_KEY = 249, KEYCTL = 250, EXIT_GROUP = 231 };
static long call(long number, long a, long b, long c, long d)
{
	register long fourth __asm__("r10") = d;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth) : "rcx", "r11", "memory");
	return result;
}
#else
enum { WRITE = 4, SOCKETCALL = 102, SOCKET = 359, SOCKETPAIR = 360, SETSOCKOPT = 366, ADD_KEY = 286, REQUEST_KEY = 287, KEYCTL = 288, EXIT_GROUP = 252 };
enum { UNAME = 122, MMAP2 = 192, STAT64 = 195, FSTAT64 = 197, GETUID32 = 199, CLOCK_GETTIME64 = 403 };
static long call(long number, long a, long b, long c, long d)
{
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
	return result;
}
#endif

static void say(const char *name, int suffix, long value)
{
	char line[64], digits[24];
	int at = 0, count = 0;
	while (*name)
		line[at++] = *name++;
	if (suffix >= 0) {
		line[at++] = '0' + suffix / 10;
		line[at++] = '0' + suffix % 10;
	}
	line[at++] = '=';
	if (value < 0) {
		line[at++] = '-';
		value = -value;
	}
	do
		digits[count++] = '0' + value % 10;
	while (value /= 10);
	while (count)
		line[at++] = digits[--count];
	line[at++] = '\n';
	call(WRITE, 1, (long)line, at, 0);
}

void _start(void)
{
	int pair[2];
	for (int family = 0; family < 48; family++) {
		say("socket", family, call(SOCKET, family, 2, 0, 0));
		say("pair", family, call(SOCKETPAIR, family, 1, 0, (long)pair));
#if defined(__x86_64__)
		/* The kernel takes 32 bits of it. */
		say("high", family, call(SOCKET, family | 1L << 32, 2, 0, 0));
#endif
	}
	/* Of no socket: what the filter lets through, the kernel refuses with another error. */
	for (int option = 0; option < 26; option++) {
		say("packet_option", option, call(SETSOCKOPT, -1, 263, option, 0));
#if defined(__x86_64__)
		say("packet_high", option, call(SETSOCKOPT, -1, 263 | 1L << 32, option | 1L << 32, 0));
#endif
	}
	say("option_socket", -1, call(SETSOCKOPT, -1, 1, 2, 0));
	say("option_ip", -1, call(SETSOCKOPT, -1, 0, 64, 0));
	say("option_tcp", -1, call(SETSOCKOPT, -1, 6, 1, 0));
	say("option_alg", -1, call(SETSOCKOPT, -1, 279, 1, 0));
	for (int operation = 0; operation < 33; operation++)
		if (operation != 7) /* clears a keyring of whoever runs this outside */
			say("keyctl", operation, call(KEYCTL, operation, 0, 0, 0));
	say("add_key", -1, call(ADD_KEY, 0, 0, 0, 0));
	say("request_key", -1, call(REQUEST_KEY, 0, 0, 0, 0));
#if defined(__i386__)
	int arguments[4] = { 40, 1, 0, 0 };
	char room[512];
	long long time[2];
	say("socketcall", -1, call(SOCKETCALL, 1, (long)arguments, 0, 0));
	say("socketcall_option", -1, call(SOCKETCALL, 14, (long)arguments, 0, 0));
	say("uname", -1, call(UNAME, (long)room, 0, 0, 0));
	say("stat64", -1, call(STAT64, (long)"/", (long)room, 0, 0));
	say("fstat64", -1, call(FSTAT64, 1, (long)room, 0, 0));
	say("getuid32", -1, call(GETUID32, 0, 0, 0, 0));
	say("clock_gettime64", -1, call(CLOCK_GETTIME64, 1, (long)time, 0, 0));
	say("mmap2", -1, call(MMAP2, 0, 4096, 1, 2));
#endif
	call(EXIT_GROUP, 0, 0, 0, 0);
}
