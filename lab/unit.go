package lab

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/deploy"
)

// unit is the part of a systemd service file that the lab uses: what to start and
// with what priority. It ignores all other settings.
type unit struct {
	exec        []string
	environment []string
	files       []string // EnvironmentFile=, as paths on the node
	nice        int
}

// loadUnit reads the unit of a process as it is installed on real machines.
func loadUnit(process string) (unit, error) {
	data, err := deploy.Files.ReadFile(path.Join("systemd", "weft-"+process+".service"))
	if err != nil {
		return unit{}, fmt.Errorf("no unit for process %q; there are apiserver, agent, tunnel and dns", process)
	}
	return parseUnit(string(data))
}

func parseUnit(text string) (u unit, err error) {
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return unit{}, fmt.Errorf("unit: line %q has no =", line)
		}
		if section != "[Service]" {
			continue
		}
		switch strings.TrimSpace(key) {
		case "ExecStart":
			u.exec = strings.Fields(value)
		case "Environment":
			for _, v := range strings.Fields(value) {
				u.environment = append(u.environment, strings.Trim(v, `"`))
			}
		case "EnvironmentFile":
			u.files = append(u.files, strings.TrimSpace(value))
		case "Nice":
			if u.nice, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return unit{}, fmt.Errorf("unit: Nice=%s is not a number", value)
			}
		}
	}
	if len(u.exec) == 0 {
		return unit{}, fmt.Errorf("unit: no ExecStart=")
	}
	return u, nil
}

// command resolves what to execute. read reads a file of the node; a file whose name
// begins with a dash may be missing.
func (u unit) command(read func(path string) ([]byte, error)) (args, env []string, err error) {
	env = append(env, u.environment...)
	for _, name := range u.files {
		name, optional := strings.CutPrefix(name, "-")
		data, err := read(name)
		if err != nil {
			if optional && os.IsNotExist(err) {
				continue
			}
			return nil, nil, fmt.Errorf("unit: environment file: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				env = append(env, line)
			}
		}
	}
	for _, word := range u.exec {
		name, isVariable := strings.CutPrefix(word, "$")
		if !isVariable {
			args = append(args, word)
			continue
		}
		args = append(args, strings.Fields(lookup(env, name))...)
	}
	return args, env, nil
}

func lookup(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(env[i], name+"="); ok {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}
