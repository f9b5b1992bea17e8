/*
 * The lab guest's use of its devices, each line numbered, so that a lost or doubled one is seen.
 *
 *   devices disk FILE        appends 1, 2, 3 ... to FILE, each with fsync, five a second
 *   devices net ADDRESS PORT  connects once and sends 1, 2, 3 ... over that connection, five a second
 *
 * It stops, and says so in a LAB-GUEST-FAILED line, at the first error: a connection that breaks and is
 * made anew would hide what must not happen.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINES_PER_SECOND = 5, CONNECT_TRIES = 50 };

static void fail(const char *what)
{
    printf("LAB-GUEST-FAILED %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

static void rest(void)
{
    struct timespec pause = {.tv_nsec = 1000000000 / LINES_PER_SECOND};

    nanosleep(&pause, NULL);
}

static int connected(const char *address, const char *port)
{
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

    if (inet_pton(AF_INET, address, &peer.sin_addr) != 1)
        fail("address");
    for (int tries = 0; tries < CONNECT_TRIES; tries++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        if (fd < 0)
            fail("socket");
        if (connect(fd, (struct sockaddr *)&peer, sizeof(peer)) == 0)
            return fd;
        close(fd);
        rest();
    }
    fail("connect");
    return -1;
}

int main(int argc, char **argv)
{
    int on_disk = argc == 3 && strcmp(argv[1], "disk") == 0;
    int fd;

    if (on_disk)
        fd = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
    else if (argc == 4 && strcmp(argv[1], "net") == 0)
        fd = connected(argv[2], argv[3]);
    else
        return 2;
    if (fd < 0)
        fail(argv[2]);

    for (unsigned long number = 1;; number++) {
        char line[32];
        int length = snprintf(line, sizeof(line), "%lu\n", number);

        if (write(fd, line, length) != length)
            fail(on_disk ? "disk write" : "net write");
        if (on_disk && fsync(fd) != 0)
            fail("disk fsync");
        rest();
    }
}
