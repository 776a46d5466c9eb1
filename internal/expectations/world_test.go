package expectations

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/internal/meshtest"
	"github.com/weft-mesh/weft/wire"
)

// converge is how long a change may take until it is in every map.
const converge = 3 * time.Second

// namespace is that of all objects.
const namespace = "shop"

// world is a cluster of five nodes in three zones, a, a, b, b and c, with a pod client-1 … client-5
// on each, and somebody outside.
//
// Targets are "web:80", the service's first address, "web:80/UDP", "[2]web:80", its second one,
// "node:30080", the node's that the client is on or reaches, "node@2:30080", or an address. What
// is reached are pods with a port, "web-1:8080", or one of Refused, Dropped and Left.
type world struct {
	t        *testing.T
	mesh     *meshtest.Mesh
	cluster  *meshtest.Cluster
	stations []*station
	port     uint16 // of the next client
	doors    []*door
}

// zones are those of the nodes.
var zones = []string{"a", "a", "b", "b", "c"}

// outsiders is the client outside, of IPv4 and IPv6.
var outsiders = [2]netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:51::7")}

// raise runs a test on a world.
func raise(t *testing.T, dualStack bool, test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, port: 20000}
		start := meshtest.New
		if dualStack {
			start = meshtest.NewDualStack
		}
		mesh, clusters := start(t, "east")
		w.mesh, w.cluster = mesh, clusters[0]
		for i, zone := range zones {
			n := byte(i + 1)
			public := []netip.Addr{netip.AddrFrom4([4]byte{172, 16, 1, n})}
			cidrs := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, n, 0}), 24)}
			if dualStack {
				public = append(public, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: n}))
				cidrs = append(cidrs, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 5: 1, 7: n}), 64))
			}
			node := w.cluster.NodeAt(meshtest.Site{Labels: map[string]string{corev1.LabelTopologyZone: zone}, Outside: public, IPv6: dualStack})
			w.stations = append(w.stations, newStation(t, node, public, cidrs))
		}
		w.pods("client-1@1", "client-2@2", "client-3@3", "client-4@4", "client-5@5")
		test(w)
		for _, d := range w.doors {
			d.shut()
		}
	})
}

// pass lets the mesh come to rest, and reads what its agents have written.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	w.mesh.Pass(d)
	for _, s := range w.stations {
		s.look()
	}
}

// apply applies manifests, and waits until they have their effect.
func (w *world) apply(text string) {
	w.t.Helper()
	w.cluster.Apply(text)
	w.pass(converge)
}

// refuses checks that a manifest is refused, with these words.
func (w *world) refuses(text, why string) {
	w.t.Helper()
	err := w.cluster.Call(http.MethodPost, "/v1/apply", []byte(text), nil)
	if err == nil || !strings.Contains(err.Error(), why) {
		w.t.Errorf("%s\nis refused with %v, want %q", text, err, why)
	}
}

func (w *world) delete(plural string, names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.cluster.Delete(plural, namespace, name)
	}
	w.pass(converge)
}

// service is a manifest of a service that selects pods of its name.
func service(name, spec string) string {
	return manifest("Service", name, "", "spec: {selector: {app: "+name+"}, "+spec+"}")
}

// manifest is one of a kind. More is what metadata has beyond names.
func manifest(kind, name, more, rest string) string {
	version := map[string]string{"EndpointSlice": "discovery.k8s.io/v1"}[kind]
	if version == "" {
		version = "v1"
	}
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: %s%s}\n%s\n", version, kind, name, namespace, more, rest)
}

// pods adds pods, "web-1@2": web-1 on node 2, of app web.
func (w *world) pods(all ...string) {
	w.t.Helper()
	var text []string
	for _, p := range all {
		text = append(text, pod(p, ""))
	}
	w.apply(strings.Join(text, "---\n"))
}

// pod is the manifest of one. More is what its container has beyond a name.
func pod(at, more string) string {
	name, node, _ := strings.Cut(at, "@")
	if more != "" {
		more = ", " + more
	}
	app, _, _ := strings.Cut(name, "-")
	return manifest("Pod", name, "labels: {app: "+app+"}", fmt.Sprintf("spec: {nodeName: east-%s, containers: [{name: main%s}]}", node, more))
}

// slice is the manifest of a hand-written slice of a service.
func slice(name, of, rest string) string {
	return manifest("EndpointSlice", name, "labels: {kubernetes.io/service-name: "+of+"}", "addressType: IPv4\n"+rest)
}

// ip is a pod's address.
func (w *world) ip(pod string) netip.Addr {
	w.t.Helper()
	if e, ok := w.endpoint(pod); ok {
		return e.IP
	}
	w.t.Fatalf("pod %s has no address", pod)
	return netip.Addr{}
}

func (w *world) endpoint(pod string) (wire.Endpoint, bool) {
	for _, e := range w.endpoints() {
		if e.Pod == pod {
			return e, true
		}
	}
	return wire.Endpoint{}, false
}

// endpoints are all pods that run.
func (w *world) endpoints() (out []wire.Endpoint) {
	for _, line := range w.cluster.Store.Dump(wire.EndpointsPrefix) {
		_, value, _ := strings.Cut(line, "=")
		e, err := wire.Unmarshal[wire.Endpoint]([]byte(value))
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// podAt is the name of the pod that has an address; the address if none has it.
func (w *world) podAt(a netip.Addr) string {
	for _, e := range w.endpoints() {
		if slices.Contains(e.IPs(), a) {
			return e.Pod
		}
	}
	return a.String()
}

// get returns a service as the API shows it.
func (w *world) get(name string) (svc corev1.Service) {
	w.t.Helper()
	var list struct {
		Items []corev1.Service `json:"items"`
	}
	if err := w.cluster.Call(http.MethodGet, "/v1/objects/services/"+namespace+"/"+name, nil, &list); err != nil {
		w.t.Fatal(err)
	}
	if len(list.Items) != 1 {
		w.t.Fatalf("%d services are named %s", len(list.Items), name)
	}
	return list.Items[0]
}

// nodePort is that of one of a service's ports.
func (w *world) nodePort(name string, port int32) string {
	w.t.Helper()
	for _, p := range w.get(name).Spec.Ports {
		if p.Port == port && p.NodePort != 0 {
			return fmt.Sprint(p.NodePort)
		}
	}
	w.t.Fatalf("%s has no node port for %d", name, port)
	return ""
}

// client returns whoever "pod@1", "node@1", "outside@1" or the name of a pod means.
func (w *world) client(who string, ipv6 bool) client {
	w.t.Helper()
	w.port++
	c := client{kind: ofPod, port: w.port}
	family := 0
	if ipv6 {
		family = 1
	}
	what, node, on := strings.Cut(who, "@")
	name := who
	if on {
		number, err := strconv.Atoi(node)
		if err != nil || number < 1 || number > len(w.stations) {
			w.t.Fatalf("there is no client %s", who)
		}
		c.on, c.kind = w.stations[number-1], kind(what)
		switch c.kind {
		case ofOutside:
			c.addr = outsiders[family]
			return c
		case ofNode:
			c.addr = c.on.Internal[family]
			return c
		}
		name = "client-" + node
	}
	e, ok := w.endpoint(name)
	if !ok {
		w.t.Fatalf("there is no pod %s", name)
	}
	for _, a := range e.IPs() {
		if a.Is6() == ipv6 {
			c.addr, c.on = a, w.home(a)
		}
	}
	return c
}

// target reads where a client connects to.
func (w *world) target(who, text string) (netip.AddrPort, uint8) {
	w.t.Helper()
	text, protocol, _ := strings.Cut(text, "/")
	proto := protocols["TCP"]
	if protocol != "" {
		proto = protocols[protocol]
	}
	if at, err := netip.ParseAddrPort(text); err == nil {
		return at, proto
	}
	place := 0
	if strings.HasPrefix(text, "[2]") {
		text, place = text[3:], 1
	}
	host, number, err := net.SplitHostPort(text)
	if err != nil {
		w.t.Fatal(err)
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		w.t.Fatal(err)
	}
	at := func(a netip.Addr) (netip.AddrPort, uint8) { return netip.AddrPortFrom(a, uint16(port)), proto }
	if host == "node" {
		return at(w.client(who, false).on.public[place])
	}
	if of, node, ok := strings.Cut(host, "@"); ok && of == "node" {
		number, _ := strconv.Atoi(node)
		return at(w.stations[number-1].public[place])
	}
	if ips := w.get(host).Spec.ClusterIPs; len(ips) > place {
		a, err := netip.ParseAddr(ips[place])
		if err != nil {
			w.t.Fatal(err)
		}
		return at(a)
	}
	w.t.Fatalf("service %s has no address", host)
	return netip.AddrPort{}, 0
}

// draw connects to a target with the lot on one backend, "web-1:8080", "" for whatever comes. It
// returns where the client came to, and whether the lot may fall there.
func (w *world) draw(who, target string, lot netip.AddrPort) (where string, may bool) {
	w.t.Helper()
	to, proto := w.target(who, target)
	return w.connect(w.client(who, to.Addr().Is6()), to, proto, lot)
}

func (w *world) connect(c client, to netip.AddrPort, proto uint8, lot netip.AddrPort) (where string, may bool) {
	w.t.Helper()
	for _, s := range w.stations {
		s.wish = lot
	}
	got := w.send(c, to, proto)
	where = w.name(got)
	if got.device != 0 || got.what == Left && c.kind == ofPod && got.on.has(got.packet.dst.Addr()) {
		if wrong := w.reply(c, to, got); wrong != "" {
			where += ", and " + wrong
		}
	}
	may = true
	for _, s := range w.stations {
		may = s.sound() && may
	}
	return where, may
}

// reaches checks all that new connections of a client to a target may come to.
func (w *world) reaches(who, target string, want ...string) {
	w.t.Helper()
	to, proto := w.target(who, target)
	lots := []netip.AddrPort{{}}
	for _, s := range w.stations {
		lots = append(lots, s.behind(to, proto)...)
	}
	var got []string
	for _, lot := range lots {
		if where, may := w.connect(w.client(who, to.Addr().Is6()), to, proto, lot); may && !slices.Contains(got, where) {
			got = append(got, where)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.EqualFunc(got, want, same) {
		w.t.Errorf("%s connects to %s and reaches %q, want %q", who, target, got, want)
	}
}

// everywhere checks the same for a pod, a process and, if the target is not inside, a client
// outside, on every node.
func (w *world) everywhere(target string, want ...string) {
	w.t.Helper()
	kinds := []kind{ofPod, ofNode}
	if strings.HasPrefix(target, "node:") {
		kinds = append(kinds, ofOutside)
	}
	for i := range w.stations {
		for _, k := range kinds {
			w.reaches(fmt.Sprintf("%s@%d", k, i+1), target, slices.Clone(want)...)
		}
	}
}

// lot is a pod's port, as a backend.
func (w *world) lot(at string) netip.AddrPort {
	w.t.Helper()
	name, port, _ := strings.Cut(at, ":")
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		w.t.Fatal(err)
	}
	return netip.AddrPortFrom(w.ip(name), uint16(number))
}

// stays checks that a client whose last connection went to one backend comes to it again, even if
// the lot is on another.
func (w *world) stays(who, target, with, not string) {
	w.t.Helper()
	if where, _ := w.draw(who, target, w.lot(not)); where != with {
		w.t.Errorf("%s connects to %s and reaches %s, want %s as before", who, target, where, with)
	}
}

// goes checks that the lot decides where a client's new connection comes to.
func (w *world) goes(who, target, to string) {
	w.t.Helper()
	if where, may := w.draw(who, target, w.lot(to)); where != to || !may {
		w.t.Errorf("%s connects to %s and reaches %s (may: %v), want %s", who, target, where, may, to)
	}
}

// talk is datagrams from one port to a target, whatever becomes of the first.
type talk struct {
	w      *world
	who    string
	target string
	c      client
}

func (w *world) talk(who, target string) *talk {
	to, _ := w.target(who, target)
	return &talk{w, who, target, w.client(who, to.Addr().Is6())}
}

// hears checks where the next datagram comes to.
func (x *talk) hears(want string) {
	x.w.t.Helper()
	to, proto := x.w.target(x.who, x.target)
	var lot netip.AddrPort
	if strings.Contains(want, ":") {
		lot = x.w.lot(want)
	}
	if got, _ := x.w.connect(x.c, to, proto, lot); !same(got, want) {
		x.w.t.Errorf("%s says something to %s, which comes to %s, want %s", x.who, x.target, got, want)
	}
}

// door is a port of this machine that a pod's readiness probe asks.
type door struct {
	port     int
	listener net.Listener
}

// door returns one that is shut.
func (w *world) door() *door {
	w.t.Helper()
	d := &door{}
	d.open(w.t)
	d.shut()
	w.doors = append(w.doors, d)
	return d
}

// open lets probes succeed: the kernel accepts connections that nobody takes.
func (d *door) open(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", d.port))
	if err != nil {
		t.Fatal(err)
	}
	d.listener, d.port = l, l.Addr().(*net.TCPAddr).Port
}

func (d *door) shut() {
	if d.listener != nil {
		_ = d.listener.Close()
		d.listener = nil
	}
}

// probe is what a container has that is ready while the door is open.
func (d *door) probe() string {
	return fmt.Sprintf("readinessProbe: {tcpSocket: {host: 127.0.0.1, port: %d}}", d.port)
}
