package cni_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/cni"
)

// call is one call of the plugin, with what usually stands in the environment and the
// configuration, and changes to both. A field that is nil is removed.
type call struct {
	command string
	env     map[string]string
	conf    map[string]any
}

// answer is what the plugin said.
type answer struct {
	exit   int
	stdout string
	failed struct {
		CNIVersion, Msg, Details string
		Code                     uint
	}
}

func (c call) run(t *testing.T, dir string) answer {
	t.Helper()
	env := map[string]string{
		"CNI_COMMAND": c.command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
		"CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": "1",
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=one;K8S_POD_INFRA_CONTAINER_ID=c1",
	}
	maps.Copy(env, c.env)
	conf := map[string]any{"cniVersion": "1.1.0", "name": "weft", "type": "weft", "socket": filepath.Join(dir, "sock"), "spool": filepath.Join(dir, "spool")}
	maps.Copy(conf, c.conf)
	maps.DeleteFunc(conf, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	return say(t, env, string(text))
}

func say(t *testing.T, env map[string]string, stdin string) (a answer) {
	t.Helper()
	var out, stderr bytes.Buffer
	a.exit = cni.Call{Getenv: func(name string) string { return env[name] }, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &stderr}.Run(t.Context())
	a.stdout = out.String()
	if a.exit != 0 {
		if err := json.Unmarshal(out.Bytes(), &a.failed); err != nil {
			t.Errorf("it failed with %q, which is no JSON: %v", a.stdout, err)
		}
	}
	return a
}

// What the specification says of calls that cannot succeed: a code, the version that the
// runtime speaks, and, as we promise, what to do next.
func TestWhatIsRefused(t *testing.T) {
	dir := twin(t)
	away := t.TempDir()
	for _, c := range []struct {
		name string
		call call
		code uint
		says string
		at   string // the agent's folder, if not dir
	}{
		{name: "no such command", call: call{command: "FLY"}, code: types.ErrInvalidEnvironmentVariables, says: "FLY"},
		{name: "no container", call: call{command: "ADD", env: map[string]string{"CNI_CONTAINERID": ""}}, code: types.ErrInvalidEnvironmentVariables, says: "lacks CNI_CONTAINERID"},
		{name: "nothing at all", call: call{command: "ADD", env: map[string]string{"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}}, code: types.ErrInvalidEnvironmentVariables, says: "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"},
		{name: "a container that is a path", call: call{command: "ADD", env: map[string]string{"CNI_CONTAINERID": "../x"}}, code: types.ErrInvalidEnvironmentVariables},
		{name: "a device's name that is too long", call: call{command: "ADD", env: map[string]string{"CNI_IFNAME": "abcdefghijklmnop"}}, code: types.ErrInvalidEnvironmentVariables},
		{name: "no pod", call: call{command: "ADD", env: map[string]string{"CNI_ARGS": ""}}, code: types.ErrInvalidEnvironmentVariables, says: "K8S_POD_NAMESPACE"},
		{name: "arguments without a value", call: call{command: "ADD", env: map[string]string{"CNI_ARGS": "K8S_POD_NAME"}}, code: types.ErrInvalidEnvironmentVariables, says: "KEY=VALUE"},
		{name: "arguments given twice", call: call{command: "ADD", env: map[string]string{"CNI_ARGS": "K8S_POD_NAME=a;K8S_POD_NAME=b"}}, code: types.ErrInvalidEnvironmentVariables, says: "once"},
		{name: "a MAC address", call: call{command: "ADD", env: map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;MAC=02:00:00:00:00:01"}}, code: types.ErrUnsupportedField, says: "MAC"},
		{name: "a capability for MAC addresses", call: call{command: "ADD", conf: map[string]any{"runtimeConfig": map[string]any{"mac": "02:00:00:00:00:01"}}}, code: types.ErrUnsupportedField, says: `"mac"`},
		{name: "a capability for bandwidth", call: call{command: "ADD", conf: map[string]any{"runtimeConfig": map[string]any{"bandwidth": map[string]any{}}}}, code: types.ErrUnsupportedField, says: "chain a plugin"},
		{name: "an address of somebody else", call: call{command: "ADD", conf: map[string]any{"runtimeConfig": map[string]any{"ips": []string{"10.9.9.9/24"}}}}, code: types.ErrInvalidNetworkConfig, says: "10.9.9.9"},
		{name: "an address that is none", call: call{command: "ADD", conf: map[string]any{"runtimeConfig": map[string]any{"ips": []string{"ten"}}}}, code: types.ErrInvalidNetworkConfig, says: "ten"},
		{name: "addresses that are no list", call: call{command: "ADD", conf: map[string]any{"runtimeConfig": map[string]any{"ips": 1}}}, code: types.ErrInvalidNetworkConfig, says: "ips"},
		{name: "addresses of another plugin", call: call{command: "ADD", conf: map[string]any{"ipam": map[string]any{"type": "host-local"}}}, code: types.ErrUnsupportedField, says: "host-local"},
		{name: "a setting that weft does not have", call: call{command: "ADD", conf: map[string]any{"mtu": 9000}}, code: types.ErrUnsupportedField, says: `"mtu"`},
		{name: "behind another plugin", call: call{command: "ADD", conf: map[string]any{"prevResult": map[string]any{"cniVersion": "1.1.0"}}}, code: types.ErrInvalidNetworkConfig, says: "first in the list"},
		{name: "no network namespace", call: call{command: "ADD", env: map[string]string{"CNI_NETNS": "/etc/hostname"}}, code: types.ErrInvalidNetNS, says: "/etc/hostname"},
		{name: "a network namespace that is gone", call: call{command: "ADD", env: map[string]string{"CNI_NETNS": "/run/netns/never"}}, code: types.ErrInvalidNetNS, says: "never"},
		{name: "the node's own network namespace", call: call{command: "ADD", env: map[string]string{"CNI_NETNS_OVERRIDE": ""}}, code: types.ErrInvalidNetNS, says: "the node's own"},
		{name: "a version of long ago", call: call{command: "ADD", conf: map[string]any{"cniVersion": "0.2.0"}}, code: types.ErrIncompatibleCNIVersion, says: "0.3.1"},
		{name: "no version", call: call{command: "ADD", conf: map[string]any{"cniVersion": nil}}, code: types.ErrIncompatibleCNIVersion, says: "0.3.1"},
		{name: "CHECK before it existed", call: call{command: "CHECK", conf: map[string]any{"cniVersion": "0.3.1"}}, code: types.ErrIncompatibleCNIVersion, says: "0.4.0"},
		{name: "GC before it existed", call: call{command: "GC", conf: map[string]any{"cniVersion": "1.0.0"}}, code: types.ErrIncompatibleCNIVersion, says: "1.1.0"},
		{name: "STATUS before it existed", call: call{command: "STATUS", conf: map[string]any{"cniVersion": "1.0.0"}}, code: types.ErrIncompatibleCNIVersion, says: "1.1.0"},
		{name: "no network's name", call: call{command: "ADD", conf: map[string]any{"name": nil}}, code: types.ErrInvalidNetworkConfig, says: "name"},
		{name: "a network's name that is a path", call: call{command: "ADD", conf: map[string]any{"name": "../x"}}, code: types.ErrInvalidNetworkConfig},
		{name: "a socket that is no absolute path", call: call{command: "STATUS", conf: map[string]any{"socket": "sock"}}, code: types.ErrInvalidNetworkConfig, says: "absolute"},
		{name: "CHECK of a pod that was never added", call: call{command: "CHECK"}, code: types.ErrUnknownContainer, says: "shop/web-1"},
		{name: "GC without a list", call: call{command: "GC"}, code: types.ErrInvalidNetworkConfig, says: "nothing was removed"},
		{name: "ADD while the agent is away", at: away, call: call{command: "ADD"}, code: types.ErrTryAgainLater, says: "weft agent"},
		{name: "CHECK while the agent is away", at: away, call: call{command: "CHECK"}, code: types.ErrTryAgainLater, says: "weft agent"},
		{name: "GC while the agent is away", at: away, call: call{command: "GC", conf: map[string]any{"cni.dev/valid-attachments": []any{}}}, code: types.ErrTryAgainLater, says: "weft agent"},
		{name: "STATUS while the agent is away", at: away, call: call{command: "STATUS"}, code: types.ErrPluginNotAvailable, says: "weft agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := dir
			if c.at != "" {
				at = c.at
			}
			got := c.call.run(t, at)
			spoken, _ := c.call.conf["cniVersion"].(string)
			if _, given := c.call.conf["cniVersion"]; !given || spoken == "" {
				spoken = "1.1.0"
			}
			if got.exit == 0 || got.failed.Code != c.code || !strings.Contains(got.failed.Msg+"; "+got.failed.Details, c.says) || got.failed.CNIVersion != spoken {
				t.Errorf("exit %d, %s; want code %d with %q, version %s", got.exit, got.stdout, c.code, c.says, spoken)
			}
			if c.says != "" && got.failed.Details == "" {
				t.Errorf("it does not say what to do next: %s", got.stdout)
			}
		})
	}
	for name, stdin := range map[string]string{"empty": "", "half": `{"cniVersion":"1.1.0"`, "a list": "[]", "a number for a name": `{"cniVersion":"1.1.0","name":1}`} {
		if got := say(t, map[string]string{"CNI_COMMAND": "STATUS"}, stdin); got.failed.Code != types.ErrDecodingFailure {
			t.Errorf("a configuration that is %s: %s", name, got.stdout)
		}
	}
}

// A pod's life in each version: the result is that version's, and commands that have nothing
// to say print nothing.
func TestAPodsLife(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			dir := twin(t)
			with := func(more map[string]any) map[string]any {
				out := map[string]any{"cniVersion": version}
				maps.Copy(out, more)
				return out
			}
			added := call{command: "ADD", conf: with(nil)}.run(t, dir)
			if added.exit != 0 {
				t.Fatal(added.stdout)
			}
			mtu, dns := "", ""
			if version == "1.1.0" {
				mtu = `"mtu":1420,`
			}
			if version < "1" {
				dns = `"dns":{},`
			}
			of := func(family string) string {
				if version < "1" {
					return `,"version":"` + family + `"`
				}
				return ""
			}
			want := fmt.Sprintf(`{"cniVersion":%q,%[5]s"interfaces":[{"mac":"02:00:00:00:01:01",%[2]s"name":"weft-hu5yh4fmf6"},{"mac":"02:00:00:00:00:01",%[2]s"name":"eth0","sandbox":"/proc/self/ns/net"}],`+
				`"ips":[{"address":"10.1.1.2/32","gateway":"169.254.1.1","interface":1%[3]s},{"address":"fd00:10:1:1::2/128","gateway":"fe80::1","interface":1%[4]s}],`+
				`"routes":[{"dst":"169.254.1.1/32"},{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"fe80::1/128"},{"dst":"::/0","gw":"fe80::1"}]}`, version, mtu, of("4"), of("6"), dns)
			if got := compact(t, added.stdout); got != device(want, got) {
				t.Errorf("added\n%s, want\n%s", got, device(want, got))
			}
			if again := (call{command: "ADD", conf: with(nil)}).run(t, dir); again.stdout != added.stdout {
				t.Errorf("added again: %s", again.stdout)
			}
			var result map[string]any
			if err := json.Unmarshal([]byte(added.stdout), &result); err != nil {
				t.Fatal(err)
			}
			silent := func(what string, c call) {
				t.Helper()
				if got := c.run(t, dir); got.exit != 0 || got.stdout != "" {
					t.Errorf("%s: exit %d, %q", what, got.exit, got.stdout)
				}
			}
			if version >= "0.4" {
				silent("check", call{command: "CHECK", conf: with(map[string]any{"prevResult": result})})
				if got := (call{command: "CHECK", conf: with(nil)}).run(t, dir); got.failed.Code != types.ErrInvalidNetworkConfig {
					t.Errorf("check without the result of ADD: %s", got.stdout)
				}
				other := maps.Clone(result)
				other["ips"] = []any{}
				if got := (call{command: "CHECK", conf: with(map[string]any{"prevResult": other})}).run(t, dir); got.failed.Code != 100 || !strings.Contains(got.failed.Msg, "10.1.1.2") {
					t.Errorf("check with another address: %s", got.stdout)
				}
				other["interfaces"] = []any{}
				if got := (call{command: "CHECK", conf: with(map[string]any{"prevResult": other})}).run(t, dir); got.failed.Code != 100 {
					t.Errorf("check without the device: %s", got.stdout)
				}
			}
			if version == "1.1.0" {
				silent("status", call{command: "STATUS"})
				silent("gc", call{command: "GC", conf: map[string]any{"cni.dev/valid-attachments": []any{map[string]any{"containerID": "c1", "ifname": "eth0"}}}})
				silent("gc of another network", call{command: "GC", conf: map[string]any{"name": "other", "cni.dev/valid-attachments": []any{}}})
				silent("check", call{command: "CHECK", conf: with(map[string]any{"prevResult": result})})
			}
			for range 2 {
				silent("del", call{command: "DEL", env: map[string]string{"CNI_NETNS": ""}, conf: with(map[string]any{"prevResult": result})})
			}
			silent("del of what nobody added", call{command: "DEL", env: map[string]string{"CNI_ARGS": ""}, conf: with(nil)})
			if version >= "0.4" {
				if got := (call{command: "CHECK", conf: with(map[string]any{"prevResult": result})}).run(t, dir); got.failed.Code != types.ErrUnknownContainer {
					t.Errorf("check of what is gone: %s", got.stdout)
				}
			}
		})
	}
	got := say(t, map[string]string{"CNI_COMMAND": "VERSION"}, `{"cniVersion":"1.1.0"}`)
	if compact(t, got.stdout) != `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}` {
		t.Errorf("version: %s", got.stdout)
	}
	if got := say(t, nil, ""); got.exit != 0 || got.stdout != "" {
		t.Errorf("without a command: %+v", got)
	}
}

// compact is JSON with its keys in order.
func compact(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// device lets the name of the pair's other end be as it is.
func device(want, got string) string {
	at := strings.Index(got, `"name":"weft-`)
	if at < 0 {
		return want
	}
	return strings.Replace(want, "weft-hu5yh4fmf6", got[at+len(`"name":"`):at+len(`"name":"`)+len("weft-0123456789")], 1)
}

// What the runtime asks for counts: device, addresses, and one sandbox after the other.
func TestWhatTheRuntimeAsksFor(t *testing.T) {
	dir := twin(t)
	first := call{command: "ADD", env: map[string]string{"CNI_IFNAME": "net1"}, conf: map[string]any{
		"runtimeConfig": map[string]any{"ips": []string{"10.1.1.77/24"}, "portMappings": []any{map[string]any{"hostPort": 80}}}, "dns": map[string]any{"domain": "example"}}}.run(t, dir)
	if first.exit != 0 || !strings.Contains(first.stdout, `"10.1.1.77/32"`) || !strings.Contains(first.stdout, `"net1"`) || !strings.Contains(first.stdout, "fd00:10:1:1::4d/128") || !strings.Contains(first.stdout, `"example"`) {
		t.Errorf("it got %s", first.stdout)
	}
	if got := (call{command: "ADD", env: map[string]string{"CNI_IFNAME": "net2"}}).run(t, dir); got.failed.Code != types.ErrInvalidNetworkConfig || !strings.Contains(got.failed.Msg, "net1") {
		t.Errorf("a second device: %s", got.stdout)
	}
	sandbox := map[string]string{"CNI_CONTAINERID": "c2", "CNI_IFNAME": "net1"}
	if got := (call{command: "ADD", env: sandbox}).run(t, dir); got.exit != 0 || !strings.Contains(got.stdout, "10.1.1.77/32") {
		t.Errorf("in another sandbox: %s", got.stdout)
	}
	if got := (call{command: "DEL", env: map[string]string{"CNI_IFNAME": "net1"}}).run(t, dir); got.exit != 0 {
		t.Errorf("the old sandbox is deleted late: %s", got.stdout)
	}
	if got := (call{command: "ADD", env: sandbox}).run(t, dir); got.exit != 0 || !strings.Contains(got.stdout, "10.1.1.77/32") {
		t.Errorf("after that: %s", got.stdout)
	}
}

func TestStatusSaysWhatIsMissing(t *testing.T) {
	dir := twin(t)
	for _, c := range []struct {
		ready api.EndpointReadiness
		code  uint
	}{
		{api.EndpointReadiness{Ready: true}, 0},
		{api.EndpointReadiness{Why: "no state yet", Hint: "wait"}, types.ErrPluginNotAvailable},
		{api.EndpointReadiness{Limited: true, Why: "no programs", Hint: "look"}, types.ErrLimitedConnectivity},
	} {
		text, err := json.Marshal(c.ready)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "readiness"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := (call{command: "STATUS"}).run(t, dir); got.failed.Code != c.code || got.failed.Msg != c.ready.Why || got.failed.Details != c.ready.Hint || (got.exit == 0) != c.ready.Ready {
			t.Errorf("%+v: exit %d, %s", c.ready, got.exit, got.stdout)
		}
	}
}

// Whatever a runtime sends, the plugin answers in JSON or not at all, and asks the agent for
// nothing that is not valid.
func FuzzCall(f *testing.F) {
	f.Add("ADD", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", `{"cniVersion":"1.1.0","name":"weft","type":"weft"}`)
	f.Add("CHECK", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", `{"cniVersion":"0.4.0","name":"n","prevResult":{"ips":[{"address":"10.0.0.1/32","interface":7}]}}`)
	f.Add("GC", "", `{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"c","ifname":"e"}]}`)
	f.Add("DEL", "=;;", `{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"ips":["::1"]},"socket":"/x","spool":"/dev/null/x"}`)
	f.Add("VERSION", "", "")
	f.Fuzz(func(t *testing.T, command, args, conf string) {
		var fields map[string]json.RawMessage
		if json.Unmarshal([]byte(conf), &fields) == nil && fields != nil {
			// No socket of this machine is asked, and nothing is written.
			maps.DeleteFunc(fields, func(name string, _ json.RawMessage) bool {
				return strings.EqualFold(name, "socket") || strings.EqualFold(name, "spool")
			})
			fields["socket"], fields["spool"] = json.RawMessage(`"/dev/null/sock"`), json.RawMessage(`"/dev/null/spool"`)
			if text, err := json.Marshal(fields); err == nil {
				conf = string(text)
			}
		}
		var out, stderr bytes.Buffer
		env := map[string]string{"CNI_COMMAND": command, "CNI_ARGS": args, "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": "1"}
		exit := cni.Call{Getenv: func(name string) string { return env[name] }, Stdin: strings.NewReader(conf), Stdout: &out, Stderr: &stderr}.Run(t.Context())
		if out.Len() > 0 && !json.Valid(out.Bytes()) {
			t.Errorf("it answers %q", out.String())
		}
		if exit != 0 && out.Len() == 0 {
			t.Errorf("exit %d without a reason", exit)
		}
	})
}
