/* The least that pushing an event can cost: one thread, one epoll, one Redis connection, one write a follower.
 *
 * It knows no users and no history, keeps nothing that a client does not take, and cuts off who is slow. What it does
 * is what no server can leave out: SUBSCRIBE on demand, read the message, frame it once, write it to each follower.
 *
 * floor FD PORT: the listening socket, and where Redis is on loopback. GET /?channel=NAME follows a channel.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FDS_MAX = 65536, BUCKETS = 65536, NAME_MAX_BYTES = 256, BUFFER = 1 << 20, REQUEST_MAX = 4096 };

typedef struct channel {
  struct channel *next; /* in its bucket */
  char name[NAME_MAX_BYTES];
  int *followers;
  int count, room, confirmed;
  unsigned long id;
} channel;

static channel *buckets[BUCKETS];
static channel *followed[FDS_MAX]; /* by file descriptor */
static int redis, poller;
static char in[BUFFER], frame[BUFFER + 512];
static size_t filled;

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    "Transfer-Encoding: chunked\r\n\r\n1c\r\nid: 0\nevent: sync\ndata: {}\n\n\r\n";

static void die(const char *what) {
  perror(what);
  exit(1);
}

static channel *find(const char *name, size_t length, int make) {
  unsigned hash = 2166136261u;
  for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)name[i]) * 16777619u;
  channel **place = &buckets[hash % BUCKETS];
  for (channel *c = *place; c; c = c->next)
    if (strlen(c->name) == length && !memcmp(c->name, name, length)) return c;
  if (!make || length >= NAME_MAX_BYTES) return NULL;
  channel *c = calloc(1, sizeof *c);
  if (!c) die("memory");
  memcpy(c->name, name, length);
  c->next = *place;
  *place = c;
  char command[NAME_MAX_BYTES + 64];
  int size = snprintf(command, sizeof command, "*2\r\n$9\r\nSUBSCRIBE\r\n$%zu\r\n%s\r\n", length, c->name);
  if (write(redis, command, size) != size) die("SUBSCRIBE");
  return c;
}

static void leave(int fd) {
  channel *c = followed[fd];
  if (c)
    for (int i = 0; i < c->count; i++)
      if (c->followers[i] == fd) {
        c->followers[i] = c->followers[--c->count];
        break;
      }
  followed[fd] = NULL;
  close(fd);
}

static void join(int fd) {
  char request[REQUEST_MAX + 1];
  ssize_t got = read(fd, request, REQUEST_MAX);
  if (got <= 0) {
    if (got == 0 || errno != EAGAIN) leave(fd);
    return;
  }
  if (followed[fd]) return;
  request[got] = 0;
  char *name = strstr(request, "?channel="), *end = name ? strchr(name, ' ') : NULL;
  channel *c = end ? find(name + 9, end - name - 9, 1) : NULL;
  if (!c) {
    leave(fd);
    return;
  }
  if (c->count == c->room) {
    c->room = c->room ? 2 * c->room : 1;
    c->followers = realloc(c->followers, c->room * sizeof *c->followers);
    if (!c->followers) die("memory");
  }
  c->followers[c->count++] = fd;
  followed[fd] = c;
  if (c->confirmed && write(fd, HEAD, sizeof HEAD - 1) < 0) leave(fd);
}

static void send_all(channel *c, const char *data, ssize_t size) {
  for (int i = c->count - 1; i >= 0; i--) /* from the end: who leaves is replaced by one that was served */
    if (write(c->followers[i], data, size) != size) leave(c->followers[i]);
}

/* A message carries the snapshot, maybe after a number: the JSON object in it is what a client gets. */
static void publish(channel *c, const char *message, size_t length) {
  const char *body = memchr(message, '{', length);
  if (!body) return;
  length -= body - message;
  char field[64];
  int named = snprintf(field, sizeof field, "id: %lu\nevent: progress\ndata: ", ++c->id);
  int size = sprintf(frame, "%zx\r\n%s", named + length + 2, field);
  memcpy(frame + size, body, length);
  memcpy(frame + size + length, "\n\n\r\n", 4);
  send_all(c, frame, size + length + 4);
}

/* The bulk string at `*at`; NULL where it is not there in whole. A count in its place (":1") has no text. */
static const char *bulk(const char **at, const char *end, size_t *length) {
  const char *line = memchr(*at, '\n', end - *at);
  if (!line) return NULL;
  *length = **at == '$' ? strtoul(*at + 1, NULL, 10) : 0;
  const char *text = line + 1;
  if (**at != '$') {
    *at = text;
    return text;
  }
  if (text + *length + 2 > end) return NULL;
  *at = text + *length + 2;
  return text;
}

static void hear(void) {
  ssize_t got = read(redis, in + filled, sizeof in - filled);
  if (got <= 0) die("Redis");
  filled += got;
  const char *at = in, *end = in + filled;
  while (at < end) {
    const char *next = memchr(at, '\n', end - at);
    size_t kind_length, name_length, length;
    const char *kind, *name, *text;
    if (!next++) break;
    if (!(kind = bulk(&next, end, &kind_length)) || !(name = bulk(&next, end, &name_length)) ||
        !(text = bulk(&next, end, &length)))
      break;
    channel *c = find(name, name_length, 0);
    if (c && *kind == 'm') {
      publish(c, text, length);
    } else if (c && *kind == 's') {
      c->confirmed = 1;
      send_all(c, HEAD, sizeof HEAD - 1);
    }
    at = next;
  }
  filled = end - at;
  memmove(in, at, filled);
  if (filled == sizeof in) die("a message too long");
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int listener = atoi(argv[1]);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  redis = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(redis, (struct sockaddr *)&address, sizeof address)) die("Redis");
  poller = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[512];
  fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
  event.data.fd = redis;
  epoll_ctl(poller, EPOLL_CTL_ADD, redis, &event);
  for (;;) {
    int count = epoll_wait(poller, events, 512, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      if (fd == redis) {
        hear();
      } else if (fd == listener) {
        int one = 1, accepted;
        while ((accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
          if (accepted >= FDS_MAX) die("too many connections");
          setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          event.data.fd = accepted;
          epoll_ctl(poller, EPOLL_CTL_ADD, accepted, &event);
        }
      } else {
        join(fd);
      }
    }
  }
}
