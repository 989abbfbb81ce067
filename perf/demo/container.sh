# A container on an image file on the mount, and all daemons killed under it.
# shellcheck shell=bash

image_size=2G

# attach DIR: a loop device with direct I/O on the image in that mount, mounted on $work/root.
attach() {
    loop=$(losetup --find --show --direct-io=on "$1/disk.img")
    [[ $(losetup -nO DIO "$loop" | tr -d ' ') == 1 ]] || die "no direct I/O on $loop"
    mkdir -p "$work/root"
    mount -t ext4 "$loop" "$work/root"
}

detach() {
    umount "$work/root"
    losetup -d "$loop"
}

# contain COMMAND...: runs it in the container, in namespaces of its own.
contain() {
    unshare --mount --pid --uts --ipc --fork --kill-child chroot "$work/root" /bin/sh -c "$1"
}

make_rootfs() {
    local root=$work/root
    if [[ ${ROOTFS:-busybox} == debian ]]; then
        debootstrap --variant=minbase stable "$root" >"$work/debootstrap.log" 2>&1
    else
        mkdir -p "$root"/{bin,dev,proc,tmp,data}
        cp "$(command -v busybox)" "$root/bin/busybox"
        local applet
        for applet in sh dd sync sha256sum cat ls mkdir seq sleep rm cmp touch; do
            ln -sf busybox "$root/bin/$applet"
        done
    fi
    mkdir -p "$root/data"
    [[ -e $root/dev/urandom ]] || mknod "$root/dev/urandom" c 1 9
}

run_container() {
    step "an ext4 image of $image_size on the mount, loop device with direct I/O, root file system"
    truncate -s "$image_size" "$mnt/disk.img"
    mkfs.ext4 -q "$mnt/disk.img"
    attach "$mnt"
    make_rootfs

    step "a program in the container writes and syncs files"
    local files=16
    $short && files=4
    contain "set -e
        for i in \$(seq $files); do
            dd if=/dev/urandom of=/data/file\$i bs=64k count=\$((i * 8)) conv=fsync 2>/dev/null
        done
        cd /data && sha256sum file* > SUMS && sync"
    cp "$work/root/data/SUMS" "$work/sums"
    note "$(wc -l <"$work/sums") files, $(du -sh "$work/root/data" | cut -f1)"
    detach

    step "kill -9 all daemons, start them, mount on a second mount point"
    kill9 "${!daemon[@]}"
    umount -l "$mnt"
    start_servers
    mnt=$work/mnt2
    start_mount mount "$mnt"

    step "fsck finds nothing"
    fsck.ext4 -fn "$mnt/disk.img" >"$work/fsck.out" 2>&1 ||
        { cat "$work/fsck.out"; die "fsck found errors"; }
    note "$(tail -1 "$work/fsck.out")"

    step "the container starts again, with the same file hashes"
    attach "$mnt"
    contain "cd /data && sha256sum -c SUMS >/dev/null" || die "hashes differ"
    cmp "$work/sums" "$work/root/data/SUMS" || die "the list of hashes differs"
}
