package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// tools are Debian's programs that specs run in their pods, each with the package that has it.
// They stand in for Alpine's.
var tools = map[string]string{"busybox": "busybox-static", "bash": "bash", "curl": "curl", "dig": "bind9-dnsutils", "getent": "libc-bin", "nc": "netcat-openbsd"}

// image is one that specs pull: a root file system and what is started in it.
type image struct {
	reference string
	from      string // what it is made of, for people
	root      func(files, sources) error
	config    v1.Config
}

// sources are the folders of what images are made of.
type sources struct {
	programs string // Kubernetes' own, and those of `make kubernetes`
	weft     string
	agnhost  string // Kubernetes' source of it
}

const registry = "registry.k8s.io/"

// images are all that the chosen specs pull, under the names by which they do.
var images = []image{
	{registry + "e2e-test-images/agnhost:2.63.0", "Kubernetes' agnhost built from its source, and CoreDNS, on Debian's busybox, bash, curl, dig, getent and nc instead of Alpine's", agnhostRoot,
		v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: searchPath}},
	{registry + "e2e-test-images/glibc-dns-testing:2.0.0", "Debian's dig and getent with their glibc, and busybox", debianRoot, v1.Config{Cmd: []string{"/bin/sh"}, Env: searchPath}},
	{registry + "e2e-test-images/busybox:1.37.0-1", "Debian's busybox", debianRoot, v1.Config{Cmd: []string{"/bin/sh"}, Env: searchPath}},
	{registry + "e2e-test-images/nginx:1.15-4", "Debian's busybox as a web server", debianRoot, v1.Config{Cmd: []string{"/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/srv"}, Env: searchPath}},
	{registry + "pause:3.10.2", "the lab's own program, which waits", func(f files, s sources) error { return f.program("/usr/bin/weft", s.weft) },
		v1.Config{Entrypoint: []string{"/usr/bin/weft", "lab", "pause"}}},
	{corednsImage, "CoreDNS built from its source", func(f files, s sources) error { return f.program("/coredns", filepath.Join(s.programs, "coredns")) },
		v1.Config{Entrypoint: []string{"/coredns"}}},
}

// corednsVersion is that of kubeadm's for this version of Kubernetes, and of `make kubernetes`.
const corednsVersion = "v1.14.2"

const corednsImage = registry + "coredns/coredns:" + corednsVersion

var searchPath = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// agnhostRoot is what the Dockerfile of agnhost has, as far as specs of networks use it.
func agnhostRoot(f files, s sources) error {
	if err := debianRoot(f, s); err != nil {
		return err
	}
	for _, file := range []string{"localhost.crt", "localhost.key"} {
		text, err := os.ReadFile(filepath.Join(s.agnhost, "porter", file))
		if err != nil {
			return err
		}
		f.add("/"+file, 0o644, text)
	}
	f.dir("/uploads", 0o755)
	f.link("/agnhost-2", "agnhost")
	return errors.Join(f.program("/agnhost", filepath.Join(s.programs, "agnhost")), f.program("/coredns", filepath.Join(s.programs, "coredns")))
}

// debianRoot is a small Debian: busybox, with a name for each of its commands, and the tools.
func debianRoot(f files, _ sources) error {
	f.dir("/tmp", fs.ModeSticky|0o777)
	f.dir("/srv", 0o755)
	f.add("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	f.add("/etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	f.add("/etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	for _, tool := range sorted(tools) {
		file, err := exec.LookPath(tool)
		if err != nil {
			return fmt.Errorf("%s is missing, of which images are made: apt-get install %s", tool, tools[tool])
		}
		if err := f.program("/bin/"+tool, file); err != nil {
			return err
		}
	}
	out, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for _, command := range strings.Fields(string(out)) {
		// Busybox as a shell would prefer its own commands to other programs of the same name.
		if at := "/bin/" + command; at == "/bin/sh" {
			f.link(at, "bash")
		} else if f[at] == nil {
			f.link(at, "busybox")
		}
	}
	return nil
}

func sorted(m map[string]string) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// files are a root file system, by absolute path.
type files map[string]*file

type file struct {
	mode fs.FileMode
	text []byte
	link string
}

func (f files) add(at string, mode fs.FileMode, text []byte) { f[at] = &file{mode: mode, text: text} }
func (f files) link(at, to string)                           { f[at] = &file{mode: fs.ModeSymlink | 0o777, link: to} }
func (f files) dir(at string, mode fs.FileMode)              { f[at] = &file{mode: fs.ModeDir | mode} }

// library is a line of ldd's with a file that a program needs.
var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// program adds one of this machine's with the libraries that it needs.
func (f files) program(at, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f.add(at, 0o755, text)
	out, _ := exec.Command("ldd", path).Output() // of one without libraries, it says so, and fails
	for _, found := range library.FindAllStringSubmatch(string(out), -1) {
		if f[found[1]] != nil {
			continue
		}
		if text, err = os.ReadFile(found[1]); err != nil {
			return err
		}
		f.add(found[1], 0o755, text)
	}
	return nil
}

// layer packs the files.
func (f files) layer() (v1.Layer, error) {
	for at := range f {
		for dir := path.Dir(at); dir != "/"; dir = path.Dir(dir) {
			if f[dir] == nil {
				f.dir(dir, 0o755)
			}
		}
	}
	var paths []string
	for at := range f {
		paths = append(paths, at)
	}
	slices.Sort(paths)
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, at := range paths {
		one := f[at]
		h := &tar.Header{Name: strings.TrimPrefix(at, "/"), Mode: int64(one.mode.Perm()), Size: int64(len(one.text)), Typeflag: tar.TypeReg}
		switch {
		case one.mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case one.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, one.link
		}
		if one.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(one.text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil })
}

// writeImages writes an archive of all images, which containerd imports.
func writeImages(to string, s sources) error {
	archive := map[name.Reference]v1.Image{}
	for _, i := range images {
		tag, err := name.NewTag(i.reference)
		if err != nil {
			return err
		}
		if archive[tag], err = i.build(s); err != nil {
			return fmt.Errorf("image %s: %w", i.reference, err)
		}
	}
	return tarball.MultiRefWriteToFile(to, archive)
}

func (i image) build(s sources) (v1.Image, error) {
	root := files{}
	if err := i.root(root, s); err != nil {
		return nil, err
	}
	layer, err := root.layer()
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture, conf.Config = "linux", runtime.GOARCH, i.config
	return mutate.ConfigFile(img, conf)
}
