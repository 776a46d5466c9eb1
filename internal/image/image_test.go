package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// TestTheImageHoldsTheProgramAlone builds the image for this machine and takes it apart.
func TestTheImageHoldsTheProgramAlone(t *testing.T) {
	o := options{
		output: filepath.Join(t.TempDir(), "weft.tar"), reference: "registry.example/weft:v1", version: "v1",
		platforms: []platform{{"linux", runtime.GOARCH}}, created: time.Unix(1700000000, 0).UTC(),
	}
	if err := run(o); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unpack(t, o.output, dir)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 || manifest.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != o.reference {
		t.Fatalf("the layout's index is %+v, want the images under their name and one bill of materials", manifest.Manifests)
	}
	images, err := index.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(images); err != nil {
		t.Error(err)
	}
	list, err := images.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Manifests) != 1 || list.Manifests[0].Platform.Architecture != runtime.GOARCH {
		t.Fatalf("images are %+v, want one for %s", list.Manifests, runtime.GOARCH)
	}
	img, err := images.Image(list.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v; want one", len(layers), err)
	}
	text, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "weft")
	var names []string
	for r := tar.NewReader(text); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Name != "usr/bin/weft" {
			continue
		}
		f, err := os.OpenFile(binary, os.O_CREATE|os.O_WRONLY, 0o700)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(f, r)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"usr/", "usr/bin/", "tmp/", "usr/bin/weft"}; !slices.Equal(names, want) {
		t.Errorf("the image holds %v, want %v", names, want)
	}
	if out, err := exec.Command(binary, "version", "-o", "name").Output(); err != nil || strings.TrimSpace(string(out)) != "v1" {
		t.Errorf("weft version is %q, %v; want v1", out, err)
	}
	if out, err := exec.Command(binary, "lab").CombinedOutput(); err == nil {
		t.Errorf("the image has the lab: %s", out)
	}

	bill, err := index.Image(manifest.Manifests[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	about, err := bill.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if about.Subject == nil || about.Subject.Digest != list.Manifests[0].Digest {
		t.Errorf("the bill of materials is about %v, want the image %s", about.Subject, list.Manifests[0].Digest)
	}
	parts, err := bill.Layers()
	if err != nil {
		t.Fatal(err)
	}
	in, err := parts[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	var d spdxDocument
	if err := json.NewDecoder(in).Decode(&d); err != nil {
		t.Fatal(err)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(d.Packages, func(p spdxPackage) bool { return p.Name == name && p.Version != "" })
	}
	for _, name := range []string{"github.com/weft-mesh/weft", "stdlib", "github.com/cilium/ebpf", "go.etcd.io/etcd/client/v3"} {
		if !has(name) {
			t.Errorf("the bill of materials does not name %s", name)
		}
	}

	again := filepath.Join(t.TempDir(), "again.tar")
	second := filepath.Join(t.TempDir(), "layout")
	if err := errors.Join(write(second, []program{{o.platforms[0], binary}}, o), archive(second, again, o.created)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, o.output), read(t, again)) {
		t.Error("two images of one program differ")
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// unpack puts the files of an archive into a folder.
func unpack(t *testing.T, file, dir string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(read(t, file))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var text []byte
			if text, err = io.ReadAll(r); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCommandLine(t *testing.T) {
	o, err := parse([]string{"-version", "v1.2+build/3", "-created", "5"})
	if err != nil {
		t.Fatal(err)
	}
	if o.reference != "ghcr.io/weft-mesh/weft:v1.2-build-3" || len(o.platforms) != 2 || o.created.Unix() != 5 {
		t.Errorf("options are %+v", o)
	}
	for _, args := range [][]string{{"-platforms", "linux/riscv64"}, {"-platforms", ""}, {"extra"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}
