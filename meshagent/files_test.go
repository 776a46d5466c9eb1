package meshagent

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/wire"
)

// saidOf is what the cluster is told of one table.
func (n *testNode) saidOf(t *testing.T, table string) (out []wire.NodeProblem) {
	t.Helper()
	text, ok := n.cluster.store.Value(wire.NodeProblemsKey(n.name))
	if !ok {
		return nil
	}
	v, err := wire.Unmarshal[wire.NodeProblems](text)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range v.Problems {
		if p.Table == table {
			out = append(out, p)
		}
	}
	return out
}

// Damaged files do not keep an agent from starting: pods keep their addresses, and
// status shows each file until an operator removes it.
func TestDamagedFilesArePutAsideAndAllElseGoesOn(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "cut off": `{"namespace":"shop","po`} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, east, west, _ := raise(t)
				before := kernel(t, east)
				east.stop()
				damaged := []string{filepath.Join(east.dir, "generation"), filepath.Join(east.dir, "endpoints", "shop_client.json")}
				for _, path := range damaged {
					if _, err := os.Stat(path); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				east.run()
				time.Sleep(2 * lastingAfter)
				w.step()
				sameKernel(t, "damaged", kernel(t, east), before)
				said := east.saidOf(t, wire.ProblemDamages)
				if len(said) != len(damaged) {
					t.Errorf("it says %+v", said)
				}
				for _, d := range statefile.Damages(east.dir, filepath.Join(east.dir, "endpoints")) {
					if err := os.Remove(d.Aside); err != nil {
						t.Error(err)
					}
				}
				time.Sleep(2 * filesTurn)
				w.step()
				if said := east.saidOf(t, wire.ProblemDamages); len(said) != 0 {
					t.Errorf("looked at, it says %+v", said)
				}
				key := wire.NodeEndpointKey(east.name, "shop", "client")
				if state := list[wire.EndpointState](t, east.cluster, key)[key]; !state.Ready || state.UID != "uid-1" {
					t.Errorf("of the pod it says %+v", state)
				}
				// What was found again is written again, with the pod's UID.
				if text, err := os.ReadFile(damaged[1]); err != nil || !strings.Contains(string(text), `"uid":"uid-1"`) {
					t.Errorf("written again: %s, %v", text, err)
				}
				if text, err := os.ReadFile(damaged[0]); err != nil || string(text) != "east/g-east\n" {
					t.Errorf("written again: %s, %v", text, err)
				}
				east.stop()
				west.stop()
			})
		})
	}
}

// On a full disk a new pod stays without network, and status says which file is
// concerned, why and since when, until there is room.
func TestAFullDiskIsToldByPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		east := w.node("east", 1)
		east.run()
		w.step()
		dir := filepath.Join(east.dir, "endpoints")
		if err := os.WriteFile(dir, nil, 0o600); err != nil { // no folder can be made there
			t.Fatal(err)
		}
		began := time.Now()
		east.pod("web-1", "web")
		time.Sleep(5 * time.Second)
		w.step()
		said := east.saidOf(t, wire.ProblemPods)
		if len(said) != 1 || said[0].Row != "shop/web-1" || !strings.Contains(said[0].Error, filepath.Join(dir, "shop_web-1.json")) || said[0].Since.Before(began) || said[0].Since.After(began.Add(time.Second)) {
			t.Errorf("it says %+v", said)
		}
		key := wire.NodeEndpointKey(east.name, "shop", "web-1")
		why := func() string { return list[wire.EndpointState](t, east.cluster, key)[key].Why }
		if !strings.Contains(why(), filepath.Join(dir, "shop_web-1.json")) {
			t.Errorf("of the pod it says %q", why())
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		w.step()
		if said := east.saidOf(t, wire.ProblemPods); len(said) != 0 {
			t.Errorf("with room it says %+v", said)
		}
		if why() != "" {
			t.Errorf("with room it says of the pod %q", why())
		}
		if rows := rowsOf(t, east.maps().Endpoints); len(rows) != 1 {
			t.Error("the pod has no network yet")
		}

		// One that goes before it had any leaves nothing behind.
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		east.pod("web-2", "web")
		w.step()
		w.step()
		if err := east.cluster.store.Delete(t.Context(), wire.ObjectKey("pods", "shop", "web-2")); err != nil {
			t.Fatal(err)
		}
		w.step()
		w.step()
		txn := east.agent.Tables.DB.ReadTxn()
		if said := east.saidOf(t, wire.ProblemPods); len(said) != 0 || east.agent.Tables.Endpoints.NumObjects(txn) != 1 {
			t.Errorf("of a pod that is gone it says %+v, %d endpoints", said, east.agent.Tables.Endpoints.NumObjects(txn))
		}
		east.stop()
	})
}

// testBundle is the join bundle of a node, of a new cluster.
func testBundle(t *testing.T, name string) *api.JoinBundle {
	t.Helper()
	east := newCA(t, "east")
	pair := func(user string) (cert, key string) {
		c := east.issue(t, user, time.Now().Add(time.Hour), net.IPv4(192, 0, 2, 1))
		text, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
	}
	bundle := &api.JoinBundle{
		Cluster: "east", ClusterID: 1, Node: name, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")},
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: east.cert.Raw})),
	}
	bundle.Cert, bundle.Key = pair("agent-" + name)
	bundle.ServerCert, bundle.ServerKey = pair(name)
	return bundle
}

// A join bundle that is damaged is replaced by the copy of the last start, and kept;
// without a copy there is nothing to start from.
func TestADamagedJoinBundleIsReplacedByItsCopy(t *testing.T) {
	bundle := testBundle(t, "e1")
	good, err := yaml.Marshal(bundle)
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) (node, error) {
		cfg := Defaults()
		cfg.Join = path
		return readJoin(cfg)
	}
	log := slog.New(slog.DiscardHandler)
	for name, text := range map[string]string{"empty": "", "cut off": string(good[:len(good)/2]), "a key is cut off": string(good[:strings.Index(string(good), "serverKey")]), "not YAML": "}"} {
		t.Run(name, func(t *testing.T) {
			path, state := filepath.Join(t.TempDir(), "join.yaml"), filepath.Join(t.TempDir(), "agent")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := join(path, state, log, read); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "weft node add") {
				t.Errorf("without a copy: %v", err)
			}
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			if n, err := join(path, state, log, read); err != nil || n.name != "e1" {
				t.Fatalf("undamaged: %+v, %v", n, err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if n, err := join(path, state, log, read); err != nil || n.name != "e1" {
				t.Errorf("damaged: %+v, %v", n, err)
			}
			if now, err := os.ReadFile(path); err != nil || string(now) != string(good) {
				t.Errorf("it holds %q, %v", now, err)
			}
			kept := statefile.Damages(state)
			if len(kept) != 1 {
				t.Fatalf("kept %v", kept)
			}
			if was, err := os.ReadFile(kept[0].Aside); err != nil || string(was) != text {
				t.Errorf("kept %q, %v", was, err)
			}
			// A bundle that was taken away is no damage.
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if _, err := join(path, state, log, read); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("taken away: %v", err)
			}
		})
	}
}

func TestAMachineHasOneAgent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread, and its namespace, end with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	cfg := Defaults()
	cfg.StateDir = filepath.Join(t.TempDir(), "agent")
	unlock, err := lock(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(cfg); !errors.Is(err, statefile.ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
	other := cfg
	other.StateDir = filepath.Join(t.TempDir(), "agent")
	if _, err := lock(other); !errors.Is(err, statefile.ErrInUse) {
		t.Errorf("a second one with folders of its own: %v", err)
	}
	unlock()
	if unlock, err = lock(other); err != nil {
		t.Fatal(err)
	}
	unlock()
}
