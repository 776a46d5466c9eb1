package tunnel_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/tunnel"
)

func TestMTU(t *testing.T) {
	for device, want := range map[int]int{1500: 1420, 9000: 8920, 1360: 1280} {
		if got, err := tunnel.MTU(device); err != nil || got != want {
			t.Errorf("over %d: %d, %v, want %d", device, got, err, want)
		}
	}
	if _, err := tunnel.MTU(1359); err == nil || !strings.Contains(err.Error(), "raise the device MTU to 1360") {
		t.Errorf("over 1359: %v", err)
	}
}

func TestPrivateKeysDoNotPrint(t *testing.T) {
	key, err := tunnel.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	blank := tunnel.PrivateKey{}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x", "%q"} {
		if a, b := fmt.Sprintf(format, key), fmt.Sprintf(format, blank); a != b {
			t.Errorf("%s shows the key: %s", format, a)
		}
	}
	if text, err := json.Marshal(struct{ K tunnel.PrivateKey }{key}); err != nil || string(text) != `{"K":{}}` {
		t.Errorf("JSON shows the key: %s, %v", text, err)
	}
}

func FuzzParseKey(f *testing.F) {
	key, err := tunnel.NewPrivateKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key.Public().String())
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := tunnel.ParseKey(s)
		if err != nil {
			return
		}
		again, err := tunnel.ParseKey(k.String())
		if err != nil || again != k {
			t.Errorf("%q reads as %v, which reads as %v, %v", s, k, again, err)
		}
	})
}

func TestServeConfigNamesEveryMistake(t *testing.T) {
	if err := tunnel.ServeDefaults().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	cfg := tunnel.ServeConfig{Devices: [2]string{"a/b", "a/b"}, Ports: [2]uint16{7, 7}}
	err := cfg.Validate()
	for _, want := range []string{"no slash", "both tunnels use device", "both tunnels listen on port 7", "MTU 0", "state directory", "socket directory"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in: %v", want, err)
		}
	}
}
