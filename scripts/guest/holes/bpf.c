// SPDX-License-Identifier: Apache-2.0
/*
 * CVE-2026-45838 (kernel/bpf/local_storage.c): who asks a cgroup's storage for the key behind the last one is not told that
 * there is none, and gets kernel memory that lies before the head of the list.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* A program that uses the storage, and lets all packets pass. */
static int load(int map)
{
	const struct bpf_insn insns[] = {
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = BPF_REG_1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map },
		{ 0 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_2 },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_get_local_storage },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_CGROUP_SKB,
		.expected_attach_type = BPF_CGROUP_INET_EGRESS,
		.insns = (unsigned long)insns,
		.insn_cnt = COUNT(insns),
		.license = (unsigned long)"GPL",
	};

	return bpf(BPF_PROG_LOAD, &attr);
}

/* Asks for the key behind `key`, or for the first. */
static int next_key(int map, const void *key, void *next)
{
	union bpf_attr attr = { .map_fd = map, .key = (unsigned long)key, .next_key = (unsigned long)next };

	return bpf(BPF_MAP_GET_NEXT_KEY, &attr);
}

/* With a program attached to the cgroup, its storage has one key. */
static enum verdict look(int map, int program, int group)
{
	union bpf_attr attach = { .link_create = { .prog_fd = program, .target_fd = group } };
	struct bpf_cgroup_storage_key first, next;
	int link, answer;

	attach.link_create.attach_type = BPF_CGROUP_INET_EGRESS;
	link = bpf(BPF_LINK_CREATE, &attach);
	if (link < 0)
		cannot_tell("the program is not attached");
	if (next_key(map, NULL, &first))
		cannot_tell("the storage has no key");
	answer = next_key(map, &first, &next);
	if (answer && errno != ENOENT)
		cannot_tell("BPF_MAP_GET_NEXT_KEY");
	close(link);
	return answer ? CLOSED : OPEN;
}

/* A place to mount at, which the end of the process leaves empty. */
static char place[] = "/tmp/holes-XXXXXX";
static int top = -1;
static const char GROUP[] = "holes";

static void clean(void)
{
	if (top >= 0)
		unlinkat(top, GROUP, AT_REMOVEDIR);
	umount2(place, MNT_DETACH);
	rmdir(place);
}

enum verdict bpf_next_key(void)
{
	union bpf_attr create = {
		.map_type = BPF_MAP_TYPE_CGROUP_STORAGE,
		.key_size = sizeof(struct bpf_cgroup_storage_key),
		.value_size = 8,
	};
	int map = bpf(BPF_MAP_CREATE, &create);
	int program = map < 0 ? -1 : load(map);
	enum verdict verdict;
	int group;

	if (program < 0)
		cannot_tell("no BPF program with a cgroup's storage");
	enter_own(CLONE_NEWNS);
	if (!mkdtemp(place))
		cannot_tell("no folder in /tmp");
	atexit(clean);
	if (mount("none", place, "cgroup2", 0, NULL))
		cannot_tell("the cgroups are not mounted");
	top = open(place, O_DIRECTORY | O_CLOEXEC);
	/* One may be left from a run that was killed. */
	if (mkdirat(top, GROUP, 0700) && errno != EEXIST)
		cannot_tell("no cgroup can be made");
	group = openat(top, GROUP, O_DIRECTORY | O_CLOEXEC);
	if (group < 0)
		cannot_tell("the cgroup is not to be opened");
	verdict = look(map, program, group);
	close(group);
	return verdict;
}
