package endpoint

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
			got, err := ReadProbe(pod(test.probe), ip)
			if (err != nil) != test.bad {
				t.Fatalf("error %v", err)
			}
			if got != nil && got.Target != test.target || got == nil && test.target != "" {
				t.Errorf("target %+v, want %s", got, test.target)
			}
		})
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
