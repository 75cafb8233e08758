// SPDX-License-Identifier: Apache-2.0
/*
 * Keeps BPF code of one kind busy in the guest, until it is killed:
 *
 *	bpf run		an eBPF program that calls another, run over and over by a task (BPF_PROG_TEST_RUN)
 *	bpf tail	one that goes on to another program (bpf_tail_call) rather than call it
 *	bpf xdp		a very short one that is called by way of the kernel's dispatcher
 *	bpf seccomp	a classic filter on every system call of a task
 *	bpf socket	one on every packet that a socket gets
 *	bpf fexit F	a program at the end of the kernel's function F: whoever is in F has a trampoline on the stack
 *	bpf fentry F	a program at its beginning
 *	bpf kprobe F N	one on the instruction N bytes behind it, by way of a probe that perf_event_open(2) makes
 *
 * Instructions are put together by hand, so that no compiler for BPF is needed. The formats are those of
 * include/uapi/linux/bpf.h, btf.h and filter.h.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define INSN(c, d, s, o, i) ((struct bpf_insn){ .code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i) })
#define SET(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define COPY(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define ADD(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define MULTIPLY(d, i) INSN(BPF_ALU64 | BPF_MUL | BPF_K, d, 0, 0, i)
#define JUMP_IF_LESS(d, i, o) INSN(BPF_JMP | BPF_JLT | BPF_K, d, 0, o, i)
#define CALL_OWN(o) INSN(BPF_JMP | BPF_CALL, 0, BPF_PSEUDO_CALL, 0, o)
#define CALL(i) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, i)
/* Two instructions long. */
#define MAP(d, fd) INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd), INSN(0, 0, 0, 0, 0)
#define EXIT INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

static void fail(const char *what)
{
	fprintf(stderr, "bpf: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int load(union bpf_attr *attr, const struct bpf_insn *insns, unsigned count)
{
	static char log[1 << 16];
	int fd;

	attr->insns = (unsigned long)insns;
	attr->insn_cnt = count;
	attr->license = (unsigned long)"GPL";
	fd = bpf(BPF_PROG_LOAD, attr);
	if (fd >= 0)
		return fd;
	/* Once more for the reason: the log of a program that is not refused may be too long. */
	attr->log_buf = (unsigned long)log;
	attr->log_size = sizeof(log);
	attr->log_level = 1;
	bpf(BPF_PROG_LOAD, attr);
	fputs(log, stderr);
	fail("the program is refused");
	return -1;
}

/* Each runs long enough to be met in it: the second function is half of the time of the first. */
static const struct bpf_insn LONG[] = {
	SET(BPF_REG_6, 0),
	COPY(BPF_REG_1, BPF_REG_6),
	CALL_OWN(4),
	ADD(BPF_REG_6, 1),
	JUMP_IF_LESS(BPF_REG_6, 64, -4),
	SET(BPF_REG_0, 0),
	EXIT,
	/* the other one */
	COPY(BPF_REG_0, BPF_REG_1),
	SET(BPF_REG_2, 0),
	MULTIPLY(BPF_REG_0, 3),
	ADD(BPF_REG_2, 1),
	JUMP_IF_LESS(BPF_REG_2, 64, -3),
	EXIT,
};

/* Runs a program over and over. */
static void repeat(int fd)
{
	static char packet[64];

	puts("bpf: running");
	fflush(stdout);
	for (;;) {
		union bpf_attr test = { 0 };

		test.test.prog_fd = fd;
		test.test.data_in = (unsigned long)packet;
		test.test.data_size_in = sizeof(packet);
		test.test.repeat = 1 << 24;
		if (bpf(BPF_PROG_TEST_RUN, &test) < 0 && errno != EINTR)
			fail("the program cannot be run");
	}
}

static void run(void)
{
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER };

	repeat(load(&attr, LONG, COUNT(LONG)));
}

static void tail(void)
{
	union bpf_attr create = { .map_type = BPF_MAP_TYPE_PROG_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 2 };
	union bpf_attr other = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER };
	union bpf_attr first = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER };
	union bpf_attr update = { 0 };
	int map = bpf(BPF_MAP_CREATE, &create);
	int value = load(&other, LONG, COUNT(LONG));
	unsigned key = 1;
	const struct bpf_insn insns[] = {
		COPY(BPF_REG_6, BPF_REG_1),
		SET(BPF_REG_7, 0),
		ADD(BPF_REG_7, 1),
		JUMP_IF_LESS(BPF_REG_7, 500, -2),
		/* The first is not there; the second returns for both. */
		COPY(BPF_REG_1, BPF_REG_6),
		MAP(BPF_REG_2, map),
		SET(BPF_REG_3, 0),
		CALL(BPF_FUNC_tail_call),
		SET(BPF_REG_7, 0),
		ADD(BPF_REG_7, 1),
		JUMP_IF_LESS(BPF_REG_7, 500, -2),
		COPY(BPF_REG_1, BPF_REG_6),
		MAP(BPF_REG_2, map),
		SET(BPF_REG_3, 1),
		CALL(BPF_FUNC_tail_call),
		SET(BPF_REG_0, 0),
		EXIT,
	};
	int fd = load(&first, insns, COUNT(insns));

	if (map < 0)
		fail("the array of programs");
	update.map_fd = map;
	update.key = (unsigned long)&key;
	update.value = (unsigned long)&value;
	if (bpf(BPF_MAP_UPDATE_ELEM, &update) < 0)
		fail("the program cannot be put into the array");
	repeat(fd);
}

static void xdp(void)
{
	static const struct bpf_insn insns[] = { SET(BPF_REG_0, 2 /* XDP_PASS */), EXIT };
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_XDP };

	repeat(load(&attr, insns, COUNT(insns)));
}

/* A classic filter that takes its time: what is added is never the same, lest the kernel remember the answer. */
static struct sock_fprog slow(unsigned count, unsigned answer)
{
	static struct sock_filter filter[BPF_MAXINSNS];
	unsigned i;

	filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
	for (i = 1; i + 1 < count; i++)
		filter[i] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, i);
	filter[i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, answer);
	return (struct sock_fprog){ .len = count, .filter = filter };
}

static void filtered(void)
{
	/* There is little memory for a socket (net.core.optmem_max), and hidden constants take three times as much. */
	struct sock_fprog program = slow(300, 0);
	static char packet[64];
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends))
		fail("the sockets");
	if (setsockopt(ends[0], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)))
		fail("the filter is refused");
	puts("bpf: filtering");
	fflush(stdout);
	/* The filter drops them all, which the sender is not told. */
	for (;;)
		if (send(ends[1], packet, sizeof(packet), 0) < 0)
			fail("a packet cannot be sent");
}

static void seccomp(void)
{
	struct sock_fprog program = slow(4000, SECCOMP_RET_ALLOW);

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("no_new_privs");
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0))
		fail("the filter is refused");
	puts("bpf: filtering");
	fflush(stdout);
	for (;;)
		syscall(SYS_getppid);
}

/* The number of a function among the kernel's types. */
static unsigned function(const char *name)
{
	FILE *file = fopen("/sys/kernel/btf/vmlinux", "r");
	const struct btf_header *header;
	const char *types, *strings;
	char *all = malloc(64 << 20);
	size_t len, at = 0;
	unsigned id;

	if (!file || !all)
		fail("/sys/kernel/btf/vmlinux");
	len = fread(all, 1, 64 << 20, file);
	fclose(file);
	header = (const void *)all;
	if (len < sizeof(*header) || header->magic != BTF_MAGIC)
		fail("the kernel's types");
	types = all + header->hdr_len + header->type_off;
	strings = all + header->hdr_len + header->str_off;
	for (id = 1; at < header->type_len; id++) {
		const struct btf_type *type = (const void *)(types + at);
		unsigned members = BTF_INFO_VLEN(type->info);

		at += sizeof(*type);
		switch (BTF_INFO_KIND(type->info)) {
		case BTF_KIND_FUNC:
			if (!strcmp(strings + type->name_off, name))
				return id;
			break;
		case BTF_KIND_INT:
		case BTF_KIND_VAR:
		case BTF_KIND_DECL_TAG:
			at += 4;
			break;
		case BTF_KIND_ARRAY:
			at += sizeof(struct btf_array);
			break;
		case BTF_KIND_STRUCT:
		case BTF_KIND_UNION:
			at += members * sizeof(struct btf_member);
			break;
		case BTF_KIND_ENUM:
			at += members * sizeof(struct btf_enum);
			break;
		case BTF_KIND_FUNC_PROTO:
			at += members * sizeof(struct btf_param);
			break;
		case BTF_KIND_DATASEC:
			at += members * sizeof(struct btf_var_secinfo);
			break;
		case 19: /* BTF_KIND_ENUM64, which older headers lack */
			at += members * 12;
			break;
		}
	}
	fprintf(stderr, "bpf: the kernel has no function %s\n", name);
	exit(1);
}

static void trace(int type, const char *name)
{
	static const struct bpf_insn insns[] = {
		SET(BPF_REG_2, 0),
		ADD(BPF_REG_2, 1),
		JUMP_IF_LESS(BPF_REG_2, 200, -2),
		SET(BPF_REG_0, 0),
		EXIT,
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_TRACING,
		.expected_attach_type = type,
		.attach_btf_id = function(name),
	};
	union bpf_attr attach = { 0 };

	attach.raw_tracepoint.prog_fd = load(&attr, insns, COUNT(insns));
	if (bpf(BPF_RAW_TRACEPOINT_OPEN, &attach) < 0)
		fail("the program cannot be attached");
	puts("bpf: attached");
	fflush(stdout);
	for (;;)
		pause();
}

static void probe(const char *name, unsigned long offset)
{
	static const struct bpf_insn insns[] = { SET(BPF_REG_0, 0), EXIT };
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_KPROBE, .prog_name = "lucos_probe" };
	struct perf_event_attr event = {
		.size = sizeof(event),
		.kprobe_func = (unsigned long)name,
		.probe_offset = offset,
	};
	FILE *file = fopen("/sys/bus/event_source/devices/kprobe/type", "r");
	int fd, program = load(&attr, insns, COUNT(insns));

	if (!file || fscanf(file, "%u", &event.type) != 1)
		fail("the type of events that are probes");
	fclose(file);
	fd = syscall(SYS_perf_event_open, &event, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd < 0)
		fail("the probe");
	if (ioctl(fd, PERF_EVENT_IOC_SET_BPF, program) < 0 || ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) < 0)
		fail("the program cannot be attached");
	puts("bpf: attached");
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	const char *mode = argc > 1 ? argv[1] : "";

	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	if (!strcmp(mode, "run"))
		run();
	if (!strcmp(mode, "tail"))
		tail();
	if (!strcmp(mode, "xdp"))
		xdp();
	if (!strcmp(mode, "seccomp"))
		seccomp();
	if (!strcmp(mode, "socket"))
		filtered();
	if (!strcmp(mode, "fexit") && argc > 2)
		trace(BPF_TRACE_FEXIT, argv[2]);
	if (!strcmp(mode, "fentry") && argc > 2)
		trace(BPF_TRACE_FENTRY, argv[2]);
	if (!strcmp(mode, "kprobe") && argc > 3)
		probe(argv[2], strtoul(argv[3], NULL, 0));
	fputs("usage: bpf run | tail | xdp | seccomp | socket | fexit FUNCTION | fentry FUNCTION | kprobe FUNCTION OFFSET\n", stderr);
	return 2;
}
