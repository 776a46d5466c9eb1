package service

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Host ports are offered at the node's addresses of the pod's families, or at the one that they
// name.
func TestHostPorts(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	port := func(host int32, at string, p corev1.Protocol) []corev1.ContainerPort {
		return []corev1.ContainerPort{{HostPort: host, HostIP: at, ContainerPort: 8080, Protocol: p}, {ContainerPort: 9090}}
	}
	four, six := netip.MustParseAddr("10.1.1.2"), netip.MustParseAddr("fd00::2")
	node := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")}
	for name, c := range map[string]struct {
		spec  corev1.PodSpec
		addrs []netip.Addr
		want  string
	}{
		"none":                     {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(0, "", "")}}}, []netip.Addr{four}, ""},
		"of one family":            {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(80, "", "")}}}, []netip.Addr{four}, "192.0.2.1:80/TCP>10.1.1.2 198.51.100.1:80/TCP>10.1.1.2"},
		"of both":                  {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(53, "", corev1.ProtocolUDP)}}}, []netip.Addr{four, six}, "192.0.2.1:53/UDP>10.1.1.2 198.51.100.1:53/UDP>10.1.1.2 [2001:db8::1]:53/UDP>fd00::2"},
		"at one":                   {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(80, "198.51.100.1", "")}}}, []netip.Addr{four, six}, "198.51.100.1:80/TCP>10.1.1.2"},
		"at another machine's":     {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(53, "203.0.113.9", corev1.ProtocolUDP)}}}, []netip.Addr{four, six}, ""},
		"at all of a family":       {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(80, "::", "")}}}, []netip.Addr{four, six}, "[2001:db8::1]:80/TCP>fd00::2"},
		"at one of another family": {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(80, "2001:db8::1", "")}}}, []netip.Addr{four}, ""},
		"at loopback":              {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(80, "127.0.0.1", "")}}}, []netip.Addr{four, six}, "127.0.0.1:80/TCP>10.1.1.2"},
		"at what is no node's":     {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(80, "169.254.1.1", "")}}}, []netip.Addr{four}, ""},
		"SCTP":                     {corev1.PodSpec{Containers: []corev1.Container{{Ports: port(80, "", corev1.ProtocolSCTP)}}}, []netip.Addr{four}, ""},
		"of a sidecar":             {corev1.PodSpec{InitContainers: []corev1.Container{{Ports: port(80, "198.51.100.1", ""), RestartPolicy: &always}, {Ports: port(81, "198.51.100.1", "")}}}, []netip.Addr{four}, "198.51.100.1:80/TCP>10.1.1.2"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range HostFrontends(Client{Cluster: 1, Node: "n1"}, &Pod{Namespace: "shop", Name: "web"}, c.addrs, node, HostPorts(&c.spec)) {
				b := f.Groups[0].Backends
				if len(f.Groups) != 1 || len(b) != 1 || b[0].Port != 8080 || b[0].Node != "n1" || f.Groups[0].Cluster != 1 || b[0].Weight != DefaultWeight {
					t.Errorf("groups %+v", f.Groups)
				}
				got = append(got, fmt.Sprintf("%v/%s>%v", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol, b[0].Addr))
			}
			if text := strings.Join(got, " "); text != c.want {
				t.Errorf("%s, want %s", text, c.want)
			}
		})
	}
}
