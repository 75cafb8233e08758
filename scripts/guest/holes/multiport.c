// SPDX-License-Identifier: Apache-2.0
/*
 * CVE-2026-31681 (net/netfilter/xt_multiport.c, a module): a rule for a range of ports that ends before it begins is taken
 * without a word, and matches nothing.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <limits.h>
#include <linux/netfilter/x_tables.h>
#include <linux/netfilter/xt_multiport.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

/* What an entry ends with: a verdict, or the end of the table. */
struct policy {
	struct ipt_entry entry;
	struct xt_standard_target target;
};

/* One rule, before the policy of the first hook; then the other two, and the end. */
struct table {
	struct ipt_replace head;
	struct {
		struct ipt_entry entry;
		struct xt_entry_match match;
		struct xt_multiport_v1 ports;
		struct xt_standard_target target;
	} rule;
	struct policy policies[3];
	struct {
		struct ipt_entry entry;
		struct xt_error_target target;
	} end;
};

#define ENTRIES(part) (offsetof(struct table, part) - offsetof(struct table, rule))

static const int HOOKS[] = { NF_INET_LOCAL_IN, NF_INET_FORWARD, NF_INET_LOCAL_OUT };

static void accept_all(struct xt_standard_target *target)
{
	target->target.u.target_size = sizeof(*target);
	target->verdict = -NF_ACCEPT - 1;
}

/* A filter table whose first rule is for ports from `first` to `last`. */
static struct table table_of(unsigned short first, unsigned short last)
{
	struct table table = { 0 };
	unsigned i;

	strcpy(table.head.name, "filter");
	table.head.valid_hooks = 1 << NF_INET_LOCAL_IN | 1 << NF_INET_FORWARD | 1 << NF_INET_LOCAL_OUT;
	table.head.num_entries = 5;
	table.head.size = sizeof(table) - offsetof(struct table, rule);

	table.rule.entry.ip.proto = IPPROTO_TCP;
	table.rule.entry.target_offset = offsetof(struct table, rule.target) - offsetof(struct table, rule);
	table.rule.entry.next_offset = sizeof(table.rule);
	table.rule.match.u.match_size = sizeof(table.rule.match) + sizeof(table.rule.ports);
	strcpy(table.rule.match.u.user.name, "multiport");
	table.rule.match.u.user.revision = 1;
	table.rule.ports.flags = XT_MULTIPORT_DESTINATION;
	table.rule.ports.count = 2;
	table.rule.ports.ports[0] = first;
	table.rule.ports.ports[1] = last;
	table.rule.ports.pflags[0] = 1;
	accept_all(&table.rule.target);

	for (i = 0; i < 3; i++) {
		table.policies[i].entry.target_offset = sizeof(struct ipt_entry);
		table.policies[i].entry.next_offset = sizeof(struct policy);
		accept_all(&table.policies[i].target);
		table.head.hook_entry[HOOKS[i]] = i ? ENTRIES(policies[i]) : 0;
		table.head.underflow[HOOKS[i]] = ENTRIES(policies[i]);
	}

	table.end.entry.target_offset = sizeof(struct ipt_entry);
	table.end.entry.next_offset = sizeof(table.end);
	table.end.target.target.u.target_size = sizeof(table.end.target);
	strcpy(table.end.target.target.u.user.name, XT_ERROR_TARGET);
	strcpy(table.end.target.errorname, "ERROR");
	return table;
}

/* Puts it in the place of the one that is there, whose counters the kernel gives back. */
static int replace(int fd, struct table table)
{
	static struct xt_counters counters[64];
	struct ipt_getinfo info = { .name = "filter" };
	socklen_t size = sizeof(info);

	if (getsockopt(fd, IPPROTO_IP, IPT_SO_GET_INFO, &info, &size))
		cannot_tell("there is no filter table");
	errno = 0;
	if (info.num_entries > sizeof(counters) / sizeof(counters[0]))
		cannot_tell("the filter table is not a new one");
	table.head.num_counters = info.num_entries;
	table.head.counters = counters;
	return setsockopt(fd, IPPROTO_IP, IPT_SO_SET_REPLACE, &table, sizeof(table));
}

enum verdict multiport_range(void)
{
	static const char *const MODULES[] = { "ip_tables", "iptable_filter", "xt_multiport", NULL };
	int fd;

	need_modules(MODULES);
	/* Its tables are its own. */
	enter_own(CLONE_NEWNET);
	fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	if (fd < 0)
		cannot_tell("no raw socket");
	if (replace(fd, table_of(10, 20)))
		cannot_tell("a good range is refused");
	if (!replace(fd, table_of(20, 10)))
		return OPEN;
	if (errno != EINVAL)
		cannot_tell("IPT_SO_SET_REPLACE");
	return CLOSED;
}
