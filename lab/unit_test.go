package lab

import (
	"io/fs"
	"slices"
	"testing"
)

func TestUnitsOfTheDeployFolder(t *testing.T) {
	for _, process := range []string{"apiserver", "agent", "tunnel"} {
		u, err := loadUnit(process)
		if err != nil {
			t.Fatal(err)
		}
		args, _, err := u.command(func(string) ([]byte, error) { return nil, fs.ErrNotExist })
		if err != nil || len(args) < 2 || args[1] != process || slices.ContainsFunc(args, func(a string) bool { return a == "" || a[0] == '$' }) {
			t.Errorf("unit of %s starts %q, %v", process, args, err)
		}
	}
	if _, err := loadUnit("proxy"); err == nil {
		t.Error("a process without a unit is found")
	}
}

func TestUnitCommand(t *testing.T) {
	u, err := parseUnit("# comment\n[Unit]\nDescription=x\n[Service]\nEnvironment=A=1 \"B=2\"\nEnvironmentFile=-/etc/weft/x.env\nNice=-3\nExecStart=/usr/local/bin/weft agent \\\n  --a $FLAGS $NONE\nRestart=always\n")
	if err != nil {
		t.Fatal(err)
	}
	args, env, err := u.command(func(string) ([]byte, error) { return []byte("# more\nFLAGS=--b --c\n"), nil })
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/usr/local/bin/weft", "agent", "--a", "--b", "--c"}; !slices.Equal(args, want) {
		t.Errorf("args = %q, want %q", args, want)
	}
	if want := []string{"A=1", "B=2", "FLAGS=--b --c"}; !slices.Equal(env, want) {
		t.Errorf("env = %q, want %q", env, want)
	}
	if u.nice != -3 {
		t.Errorf("nice = %d, want -3", u.nice)
	}
	for _, bad := range []string{"[Service]\nRestart=always\n", "[Service]\nExecStart=x\nNice=much\n", "[Service]\nExecStart\n"} {
		if _, err := parseUnit(bad); err == nil {
			t.Errorf("unit %q is accepted", bad)
		}
	}
}
