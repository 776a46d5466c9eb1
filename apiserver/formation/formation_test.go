package formation

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
)

func address(n string) netip.Addr { return netip.MustParseAddr("192.0.2." + n) }

// mesh is a Kubernetes cluster whose API servers answer with servers, if any do.
type mesh struct {
	client *fake.Clientset

	mu      sync.Mutex // guards what follows
	servers []api.ServerStatus
	up      bool
	removed []string
}

func newMesh(objects ...runtime.Object) *mesh {
	for _, n := range []string{"1", "2", "3"} {
		objects = append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n" + n}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address(n).String()}}}})
	}
	return &mesh{client: fake.NewClientset(objects...)}
}

func operator(t *testing.T) *corev1.Secret {
	t.Helper()
	file := &api.Config{}
	file.Set(api.Context{Name: "east", Server: "https://192.0.2.1:7443"})
	text, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: api.OperatorSecret, Namespace: "weft-system"}, Data: map[string][]byte{api.OperatorContextKey: text}}
}

func (m *mesh) config(n string, port uint16) Config {
	return Config{
		Client: m.client, Namespace: "weft-system", Cluster: "east", Name: "n" + n, Address: address(n), Port: port,
		Dial: func(api.Context) (Servers, error) { return m, nil }, Log: slog.New(slog.DiscardHandler),
	}
}

func (m *mesh) Servers(context.Context) (*api.ServerList, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return nil, errors.New("connection refused")
	}
	return &api.ServerList{Cluster: "east", Servers: m.servers}, nil
}

func (m *mesh) AddServer(_ context.Context, r api.ServerRequest) (*api.ServerBundle, error) {
	return &api.ServerBundle{Name: r.Name}, nil
}

func (m *mesh) RemoveServer(_ context.Context, name string) (*api.ServerChange, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.removed = append(m.removed, name)
	return &api.ServerChange{}, nil
}

func (m *mesh) Close() {}

func (m *mesh) record(t *testing.T) Record {
	t.Helper()
	r, _, err := records{m.client, "weft-system"}.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAStoreBeginsAgainOnlyWhenMostHaveLostIt(t *testing.T) {
	members := func(texts ...string) Record {
		r := Record{Members: map[string]Member{}}
		for _, text := range texts {
			name, is, _ := strings.Cut(text, " ")
			r.Members[name] = Member{Address: address(name[1:]), Empty: is == "empty"}
		}
		return r
	}
	gone := func(m Member) bool { return m.Address == address("9") }
	for _, c := range []struct {
		record Record
		known  bool
		want   step
	}{
		{Record{}, false, begin},
		{members("n1"), true, wait},
		{members("n1 empty"), true, begin},
		{members("n9"), true, begin}, // its node is gone
		{members("n1 empty", "n2"), true, wait},
		{members("n1 empty", "n2", "n3"), true, wait},
		{members("n1 empty", "n2 empty", "n3"), true, begin},
		{members("n1 empty", "n2", "n9"), true, begin},
		{members("n1 empty", "n2 empty", "n3", "n4"), true, wait},
	} {
		if got, why := decide(c.record, c.known, gone); got != c.want || (got == wait) != (why != "") {
			t.Errorf("%+v: %v (%q), want %v", c.record, got, why, c.want)
		}
	}
}

// Of several that start at once, one begins the store; the others wait until it answers, and
// join it.
func TestOneBeginsAndTheOthersJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh()
		type end struct {
			name string
			b    *api.ServerBundle
			err  error
		}
		ends := make(chan end, 3)
		for _, n := range []string{"1", "2", "3"} {
			go func() {
				b, err := Form(t.Context(), m.config(n, 7446))
				ends <- end{"n" + n, b, err}
			}()
		}
		first := <-ends
		if first.err != nil || first.b != nil {
			t.Fatalf("the first: %+v", first)
		}
		if r := m.record(t); len(r.Members) != 1 || !r.Members[first.name].Address.IsValid() {
			t.Errorf("the record is %+v, and %s has begun", r, first.name)
		}
		synctest.Wait()
		if len(ends) > 0 {
			t.Fatalf("another one did not wait: %+v", <-ends)
		}
		m.mu.Lock()
		m.up = true
		m.mu.Unlock()
		if _, err := m.client.CoreV1().Secrets("weft-system").Create(t.Context(), operator(t), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if e := <-ends; e.err != nil || e.b == nil || e.b.Name != e.name {
				t.Errorf("another one: %+v", e)
			}
		}
		if r := m.record(t); len(r.Members) != 3 {
			t.Errorf("the record is %+v, want all three", r)
		}
	})
}

// All have lost their disks: once more than half of them have said so, one begins again.
func TestALostStoreBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(operator(t))
		if err := Follow(t.Context(), m.client, "weft-system", map[string]netip.Addr{"n1": address("1"), "n2": address("2"), "n3": address("3")}); err != nil {
			t.Fatal(err)
		}
		ends := make(chan error, 2)
		form := func(n string) {
			b, err := Form(t.Context(), m.config(n, 7446))
			if b != nil {
				err = errors.New("it has a bundle")
			}
			ends <- err
		}
		ctx, stop := context.WithTimeout(t.Context(), 10*turn)
		defer stop()
		if b, err := Form(ctx, m.config("1", 7446)); b != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("one of three alone: %v, %v", b, err)
		}
		if r := m.record(t); !r.Members["n1"].Empty || r.Members["n2"].Empty {
			t.Errorf("the record is %+v", r)
		}
		go form("2")
		if err := <-ends; err != nil {
			t.Fatal(err)
		}
		if r := m.record(t); len(r.Members) != 1 || r.Members["n2"].Empty {
			t.Errorf("the record is %+v, and n2 has begun", r)
		}
	})
}

func TestOneAloneStaysWhereItsStoreIs(t *testing.T) {
	m := newMesh(operator(t))
	for name, prepare := range map[string]func(){
		"nobody knows who has it": func() {},
		"another node has it": func() {
			if err := Follow(t.Context(), m.client, "weft-system", map[string]netip.Addr{"n1": address("1")}); err != nil {
				t.Fatal(err)
			}
		},
		"it answers": func() { m.up = true },
	} {
		prepare()
		if b, err := Form(t.Context(), m.config("2", 0)); b != nil || !errors.Is(err, ErrElsewhere) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
		m.up = false
	}
}

// Who joins removes what is left of itself, and of one whose pod is on no node any longer; not
// one whose pod only restarts.
func TestWhatIsLeftOfOthersGoes(t *testing.T) {
	pod := func(n string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "s" + n, Namespace: "weft-system", Labels: map[string]string{"app.kubernetes.io/component": "apiserver"}}, Status: corev1.PodStatus{HostIP: address(n).String()}}
	}
	m := newMesh(operator(t), pod("1"), pod("3"), pod("4"))
	m.up = true
	for n, store := range map[string]string{"1": api.StoreUp, "2": api.StoreDown, "3": api.StoreDown, "4": api.StoreDown} {
		m.servers = append(m.servers, api.ServerStatus{Name: "n" + n, Store: store, StoreAddress: address(n).String() + ":7446"})
	}
	if b, err := Form(t.Context(), m.config("4", 7446)); err != nil || b.Name != "n4" {
		t.Fatalf("%v, %v", b, err)
	}
	if len(m.removed) != 2 || !strings.Contains(strings.Join(m.removed, " "), "n2") || !strings.Contains(strings.Join(m.removed, " "), "n4") {
		t.Errorf("removed are %v, want n2 and n4", m.removed)
	}
}
