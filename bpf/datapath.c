//go:build ignore

/* All programs in one object, so that they share their maps. */
#include "from_pod.c"
#include "to_pod.c"
#include "from_tunnel.c"
#include "to_tunnel.c"
#include "device.c"
#include "socket.c"
#include "sweep.c"
#include "waiting.c"

char _license[] SEC("license") = "Dual BSD/GPL";
