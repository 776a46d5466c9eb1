package endpoint

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/statefile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRecordsReadBackAndAreSecret(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "endpoints"))
	if got, _, err := dir.Load(); err != nil || len(got) != 0 {
		t.Fatalf("no directory: %v, %v", got, err)
	}
	r := Record{Namespace: "shop", Pod: "web-1", UID: "u", IP: netip.MustParseAddr("10.1.1.2"), ID: 3}
	if err := dir.Save(r); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(string(dir), "shop_web-1.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	got, _, err := dir.Load()
	if err != nil || !slices.Equal(got, []Record{r}) {
		t.Errorf("read back %v, %v", got, err)
	}
	for range 2 {
		if err := dir.Remove(r); err != nil {
			t.Error(err)
		}
	}
	// What is damaged is put aside, whatever the damage; the pod's name is known, and
	// nothing else is disturbed.
	if err := dir.Save(r); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"x_half.json": "{", "x_empty.json": "", "x_other.json": `{"namespace":"shop","pod":"web-1","ip":"10.1.1.2","id":3}`, "x_zero.json": "{}", "nobody.json": "{",
	} {
		if err := os.WriteFile(filepath.Join(string(dir), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, lost, err := dir.Load()
	if err != nil || !slices.Equal(got, []Record{r}) {
		t.Errorf("beside damaged ones: %v, %v", got, err)
	}
	var names []string
	for _, l := range lost {
		names = append(names, l.Key())
		if l.IP.IsValid() || l.ID != 0 {
			t.Errorf("believed of a damaged file: %+v", l)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"x/empty", "x/half", "x/other", "x/zero"}) || len(statefile.Damages(string(dir))) != 5 {
		t.Errorf("lost %v, put aside %v", names, statefile.Damages(string(dir)))
	}
	if _, lost, err := dir.Load(); err != nil || len(lost) != 0 {
		t.Errorf("the next time: %v, %v", lost, err)
	}
}

func TestReadProbe(t *testing.T) {
	ip := netip.MustParseAddr("10.1.1.2")
	pod := func(p *corev1.Probe) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "web", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}, ReadinessProbe: p,
		}}}}
	}
	for _, test := range []struct {
		name   string
		probe  *corev1.Probe
		target string
		bad    bool
	}{
		{name: "none"},
		{name: "tcp", probe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}}, target: "10.1.1.2:80"},
		{name: "http, named port", probe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("http")}}}, target: "http://10.1.1.2:8080/ok"},
		{name: "unknown port", probe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("x")}}}, bad: true},
		{name: "exec", probe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}}, bad: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ReadProbes(pod(test.probe), ip)
			if (err != nil) != test.bad {
				t.Fatalf("error %v", err)
			}
			var targets []string
			for _, p := range got {
				targets = append(targets, p.Target)
			}
			if strings.Join(targets, " ") != test.target {
				t.Errorf("targets %q, want %q", targets, test.target)
			}
		})
	}
}

// A pod is ready when all its containers are, sidecars included.
func TestEveryContainerIsProbed(t *testing.T) {
	open := func() *net.TCPListener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.(*net.TCPListener)
	}
	container := func(name string, l *net.TCPListener) corev1.Container {
		port := intstr.FromInt(l.Addr().(*net.TCPAddr).Port)
		return corev1.Container{Name: name, ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}}}
	}
	for _, dead := range []string{"", "sidecar", "web", "log"} {
		sidecar, web, log := open(), open(), open()
		if l := map[string]*net.TCPListener{"sidecar": sidecar, "web": web, "log": log}[dead]; l != nil {
			l.Close()
		}
		pod := &corev1.Pod{Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "setup"}, container("sidecar", sidecar)}, Containers: []corev1.Container{container("web", web), {Name: "none"}, container("log", log)},
		}}
		probes, err := ReadProbes(pod, netip.MustParseAddr("127.0.0.1"))
		if err != nil || len(probes) != 3 {
			t.Fatalf("%d probes, %v", len(probes), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var verdict *bool
		WatchAll(ctx, probes, false, func(ready bool, _ error) { verdict = &ready; cancel() })
		if verdict == nil || *verdict != (dead == "") {
			t.Errorf("with %q dead: ready %v", dead, verdict)
		}
	}
}

// The verdict on a pod follows its probes, and waits until each has one.
func TestVerdictOfSeveralProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		// Not a URL: it fails at once and never reaches the resolver, whose channels must
		// not belong to a bubble.
		probe := func(delay time.Duration) *Probe {
			return &Probe{HTTP: true, Target: ":", Delay: delay, Period: time.Second, Timeout: time.Second, Failures: 3, Successes: 1}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var at []time.Duration
		WatchAll(ctx, []*Probe{probe(0), probe(5 * time.Second)}, true, func(ready bool, why error) {
			if ready || why == nil {
				t.Errorf("ready %v, %v", ready, why)
			}
			at = append(at, time.Since(start))
		})
		if want := []time.Duration{200 * time.Millisecond, 5200 * time.Millisecond}; !slices.Equal(at, want) {
			t.Errorf("verdicts after %v, want %v", at, want)
		}
	})
}

// Whatever a pod answers, the reason stays small: it is written to etcd beside
// everything else that the node reports.
func TestReasonsOfProbesAreSmall(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan string, 1)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, <-answers)
			c.Close()
		}
	}()
	defer func() { l.Close(); <-served }()
	long := strings.Repeat("x", 40<<10)
	for name, answer := range map[string]string{
		"status text":     "HTTP/1.1 500 " + long + "\r\nContent-Length: 0\r\n\r\n",
		"no HTTP":         long + "\r\n",
		"status code":     "HTTP/1.1 " + long + "\r\n\r\n",
		"header":          "HTTP/1.1 200 OK\r\n" + long + "\r\n\r\n",
		"endless headers": "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: "+long[:1000]+"\r\n", 100) + "\r\n",
	} {
		answers <- answer
		p := &Probe{HTTP: true, Target: "http://" + l.Addr().String() + "/", Timeout: time.Minute}
		if err := p.Ask(t.Context()); err == nil || len(err.Error()) > maxReason+len("…") {
			t.Errorf("%s: %.300v", name, err)
		}
	}
}

func TestProbesSendTheirHost(t *testing.T) {
	var got string
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Host + " " + r.Header.Get("X-Probe") }))
	defer s.Close()
	host, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	probes, err := ReadProbes(&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Port: intstr.FromInt(number), HTTPHeaders: []corev1.HTTPHeader{{Name: "host", Value: "shop.example"}, {Name: "X-Probe", Value: "1"}},
	}}}}}}}, netip.MustParseAddr(host))
	if err != nil {
		t.Fatal(err)
	}
	if err := probes[0].Ask(t.Context()); err != nil || got != "shop.example 1" {
		t.Errorf("sent %q, %v", got, err)
	}
}

func TestADeadProcessIsOutAfterOnePeriodAndTwoDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		type change struct {
			ready bool
			at    time.Duration
		}
		var changes []change
		p := &Probe{Period: time.Second, Timeout: time.Second, Failures: 3, Successes: 1}
		ask := func(context.Context) error {
			since := time.Since(start)
			if since < 350*time.Millisecond || since > 5*time.Second && since < 8*time.Second {
				return errors.New("refused")
			}
			return nil
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Watch(ctx, false, ask, func(ready bool, _ error) { changes = append(changes, change{ready, time.Since(start)}) })
		}()
		time.Sleep(10 * time.Second)
		cancel()
		<-done
		want := []change{{false, 0}, {true, 400 * time.Millisecond}, {false, 5600 * time.Millisecond}, {true, 8 * time.Second}}
		if !slices.Equal(changes, want) {
			t.Errorf("changes %v, want %v", changes, want)
		}
	})
}
