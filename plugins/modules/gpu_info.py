#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe one host: documentation, validation and one call of the private package _probe."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Observe the NVIDIA GPUs, driver, PyTorch environments and health of a host
version_added: 0.1.0
description:
  - Reads everything that a plan or a policy for a GPU host needs, in one remote execution, and returns it as one document.
  - Works without a driver (PCI device ids), with one (NVML, and libcuda on request), on a host without a GPU, in WSL2 and in
    containers.
  - Never changes the host, never executes or imports anything of an environment, and never fails because of what the host is
    like. What could not be read is null and listed in RV(observation.unknown) with the reason.
  - NVML and libcuda are asked in child processes with a time limit, so that a driver that hangs cannot hang the play. The one
    that asks NVML cannot load kernel modules or make device nodes, which NVML would otherwise do where they are missing.
options:
  root:
    description: The folder that holds the environments.
    type: str
    default: /opt/gpufleet/envs
  environments:
    description:
      - Names of the environments to describe; without names, all that are there.
      - A name that does not exist on the host has no entry in RV(observation.environments).
    type: list
    elements: str
    default: []
  files:
    description: Absolute paths to describe in RV(observation.files). At most 1 MiB of a file is hashed.
    type: list
    elements: str
    default: []
  variables:
    description:
      - Names of the environment variables to report in RV(observation.runtime). Other variables of those files may be secrets
        and are not read out.
    type: list
    elements: str
    default: [TOKENIZERS_PARALLELISM]
  cuda:
    description:
      - Also ask libcuda, that is initialise CUDA as every CUDA program does; this takes 0.1 to 0.2 s on a host whose driver is
        loaded, and seconds where persistence is off.
      - Like any CUDA program, it has the driver load nvidia-uvm where that has not happened since the boot.
    type: bool
    default: false
  urls:
    description:
      - HTTP addresses that the host is to be asked for, each with a HEAD request; the answers are in RV(observation.urls).
    type: list
    elements: str
    default: []
  integrity:
    description:
      - How the current release of every environment is compared with what was stamped. V(sizes) looks at every path, size and link, which
        takes 0.1 to 0.3 s for an environment with torch (25000 to 60000 files).
      - V(hashes) also reads every file and compares its SHA-256, with every processor of the host. That costs 1 to 2 s of
        processor time for each GB, and as long as the disk needs for what the page cache does not hold.
    type: str
    choices: [sizes, hashes]
    default: sizes
  time_limit:
    description: Seconds after which NVML, libcuda or an address in O(urls) is given up.
    type: int
    default: 10
attributes:
  check_mode:
    support: full
    description: The module only reads; check mode makes no difference.
  diff_mode:
    support: none
    description: There is nothing to compare.
  platform:
    support: full
    platforms: linux
    description: Linux hosts with Python 3.9 or newer, x86_64 and aarch64.
notes:
  - Without root, other users' processes, package manager locks and files that only root may read are unknown.
  - Sizes are in MiB (1048576 bytes) unless a key says otherwise.
author:
  - The gpufleet.workstation maintainers (@gpufleet)
seealso:
  - module: gpufleet.workstation.plan
  - module: gpufleet.workstation.cuda_verify
  - plugin: gpufleet.workstation.resolve_stack
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Observe the host
  gpufleet.workstation.gpu_info:
  become: true
  register: host

- name: Name its GPUs
  ansible.builtin.debug:
    msg: "{{ host.observation.gpus | map(attribute='name') | join(', ') }}"

- name: Observe one environment and two managed files, and ask libcuda as well
  gpufleet.workstation.gpu_info:
    environments: [base]
    files:
      - /etc/profile.d/gpufleet.sh
      - /etc/modprobe.d/gpufleet-nouveau.conf
    cuda: true
    time_limit: 30
  become: true
  register: host

- name: Say what the host would get
  ansible.builtin.debug:
    msg: "{{ (host.observation | gpufleet.workstation.resolve_stack).reasons }}"
"""

RETURN = r"""
observation:
  description: The document.
  returned: always
  type: dict
  contains:
    schema:
      description: Version of this document's layout.
      type: int
      sample: 1
    observed_at:
      description: When it was made, by the host's clock, in UTC.
      type: str
      sample: "2026-11-22T19:00:00Z"
    os:
      description: The operating system.
      type: dict
      contains:
        id:
          description: C(ID) of /etc/os-release.
          type: str
          sample: debian
        version_id:
          description: C(VERSION_ID) of /etc/os-release.
          type: str
          sample: "13"
        codename:
          description: C(VERSION_CODENAME) of /etc/os-release.
          type: str
          sample: trixie
        family:
          description: C(debian), C(redhat) or C(suse), from C(ID) and C(ID_LIKE); otherwise the same as RV(observation.os.id).
          type: str
          sample: debian
        arch:
          description: The machine's architecture as uname(2) names it.
          type: str
          sample: x86_64
        kernel:
          description: Release of the running kernel.
          type: str
          sample: 6.12.94+deb13-amd64
        kernels:
          description:
            - The running kernel and those in /boot, the newest first. Rescue images are left out.
            - C(default) is whether GRUB boots it next (from GRUB's settings and environment, and the boot loader's entries of Red Hat's
              family), null where that cannot be told.
            - C(headers) is whether modules can be built for it (C(/lib/modules/<release>/build) ends at a makefile).
          type: list
          elements: dict
          sample: [{release: 6.12.94+deb13-amd64, running: true, default: true, headers: true}]
        secure_boot:
          description: What the firmware's variable C(SecureBoot) says. False without UEFI, null where it cannot be read.
          type: bool
          sample: false
        machine_owner_key:
          description: >-
            The certificate that DKMS signs modules with, null where there is none yet: C(path), C(enrolled) (whether the firmware's
            and shim's lists hold it; null where they cannot be read) and C(pending) (whether it waits for the console at the next boot).
          type: dict
          sample: {path: /var/lib/dkms/mok.pub, enrolled: true, pending: false}
        virtualization:
          description: >-
            C(wsl), C(container), the hypervisor (C(kvm), C(vmware), C(microsoft), C(xen), C(oracle), C(amazon), C(google),
            C(parallels), C(bochs), or C(vm) for another one), or null on bare metal.
          type: str
          sample: null
        boot_id:
          description: The kernel's random id of this boot.
          type: str
          sample: 1f3f0bd4-5f1f-4c9b-8a52-0ff25cb5d1ad
        init:
          description: The service manager, C(systemd) or the name of process 1.
          type: str
          sample: systemd
        uid:
          description: The user id that the observation was made with; 0 sees everything.
          type: int
          sample: 0
        pythons:
          description: Python interpreters of the system by version, from /usr/bin and /usr/local/bin.
          type: dict
          sample: {"3.13": /usr/bin/python3.13}
        graphical:
          description: Whether a display manager starts by default, or a display server runs now.
          type: bool
          sample: false
        glibc:
          description: Version of the GNU C library; null on another C library.
          type: str
          sample: "2.41"
        package_manager:
          description: C(apt) or C(dnf), by the distribution's family first, then by what is there; null for another one.
          type: str
          sample: apt
        apt:
          description: >-
            What apt reads, null where there is no apt. C(sources) holds one entry for each enabled source of binary packages
            with C(file), C(uris) (without credentials), C(suites), C(components) and C(signed_by) (a path, a fingerprint,
            C(inline) for a key in the file itself, or null).
          type: dict
          sample:
            sources:
              - file: /etc/apt/sources.list.d/debian.sources
                uris: [http://mirror.example.org/debian]
                suites: [trixie]
                components: [main, contrib]
                signed_by: /usr/share/keyrings/debian-archive-keyring.gpg
        dnf:
          description: What dnf reads, null where packages are not managed by dnf.
          type: dict
          contains:
            repositories:
              description: >-
                Every section of the .repo files, with C(file), C(id), C(urls) (baseurl, mirrorlist or metalink; variables put in, without
                credentials), C(enabled), C(gpgcheck) and C(keys) (gpgkey).
              type: list
              elements: dict
              sample:
                - file: /etc/yum.repos.d/cuda-rhel9.repo
                  id: cuda-rhel9-x86_64
                  urls: [https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64]
                  enabled: true
                  gpgcheck: true
                  keys: [https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64/D42D0685.pub]
            streams:
              description: The enabled stream of every module; C(nvidia-driver) is always a key, null where no stream of it is enabled.
              type: dict
              sample: {nvidia-driver: 580-open}
            versionlock:
              description: Whether dnf heeds version locks (dnf5, or the plugin versionlock of dnf4 that is not switched off).
              type: bool
              sample: true
            excludes:
              description: >-
                Packages that dnf must not see, with C(file), C(id) (the repository, null for all of them) and C(packages) (patterns).
              type: list
              elements: dict
              sample: [{file: /etc/dnf/dnf.conf, id: null, packages: ["kernel*"]}]
        initramfs:
          description: The program that makes an initramfs here, C(update-initramfs) or C(dracut), or null.
          type: str
          sample: update-initramfs
        disk_passphrase:
          description: >-
            Whether a boot stops until somebody types a passphrase (an encrypted disk without key file or TPM). Null where a tool
            such as clevis or a key script may unlock it.
          type: bool
          sample: false
        sessions:
          description: >-
            Who is logged in, with C(user) and C(kind) (C(graphical), C(terminal) or C(remote)). The session that observes, login screens
            and background services are left out.
          type: list
          elements: dict
          sample: [{user: alice, kind: graphical}]
        inhibitors:
          description: What blocks a reboot (systemd's inhibitors for shutdown in mode block), with C(who) and C(why).
          type: list
          elements: dict
          sample: [{who: Backup, why: a backup is being written}]
    gpus:
      description: >-
        Every NVIDIA GPU that the PCI bus, NVML or libcuda shows, by PCI address. Virtual functions are left out: they belong
        to guests. Null where the kernel shows no PCI bus and no driver names a GPU.
      type: list
      elements: dict
      contains:
        pci_address:
          description: Domain, bus, device and function.
          type: str
          sample: "0000:01:00.0"
        pci_device_id:
          description: Device id, four lower-case hexadecimal digits, from /sys or NVML.
          type: str
          sample: 2f04
        subsystem_id:
          description: Subsystem vendor and device id, which name the board.
          type: str
          sample: "10de:205e"
        name:
          description: Product name, from NVML, libcuda or the collection's table of PCI ids.
          type: str
          sample: NVIDIA GeForce RTX 5070
        chip:
          description: Name of the chip, from the table of PCI ids; null for an unknown id.
          type: str
          sample: GB205
        compute_capability:
          description: Compute capability, from NVML, libcuda or the table; null where none of them knows.
          type: str
          sample: "12.0"
        sm:
          description: The compute capability in the spelling of compilers.
          type: str
          sample: sm_120
        architecture:
          description: Name of the architecture, from the table.
          type: str
          sample: Blackwell (RTX)
        uuid:
          description: The GPU's UUID, from NVML or libcuda (with MIG, libcuda names an instance); null without a driver.
          type: str
          sample: GPU-6f3a2f0e-31c5-4a07-9a75-0c3c0fd4e6a1
        memory_mib:
          description: Memory in MiB, from NVML or, somewhat less, from libcuda; null without a driver.
          type: int
          sample: 12227
        persistence_mode:
          description: Whether NVML reports persistence mode; null without a driver.
          type: bool
          sample: true
        mig:
          description: Whether the GPU is split into MIG instances; null where it cannot be, or without a driver.
          type: bool
          sample: null
        pcie:
          description: >-
            The PCI Express link, from /sys or NVML: C(width) and C(max_width) in lanes, C(speed_gts) and C(max_speed_gts) in
            GT/s. An idle GPU lowers its speed.
          type: dict
          sample: {width: 16, max_width: 16, speed_gts: 2.5, max_speed_gts: 32.0}
        kernel_driver:
          description: The kernel driver that is bound to it, C(nvidia), C(nouveau), C(vfio-pci) or null.
          type: str
          sample: nvidia
        lost:
          description: >-
            Why it counts as lost, or null: the PCI bus lists it and reads 0xffff, or the driver says that it is lost. It is then in
            RV(observation.health.missing_gpus) too.
          type: str
          sample: null
        health:
          description: >-
            What the card says of its own state, from NVML; null without a driver that answers. Each value is C(not_applicable) where the
            card, or the mode that it is in, has no such thing (NVML_ERROR_NOT_SUPPORTED), and null where it could not be read or the
            driver is older than the question.
          type: dict
          contains:
            ecc:
              description: >-
                Errors of the memories with error correction: C(enabled), and numbers of errors that were C(corrected_volatile),
                C(uncorrected_volatile) (since the driver was loaded), C(corrected_total) and C(uncorrected_total) (in the card's life),
                from nvmlDeviceGetEccMode and nvmlDeviceGetTotalEccErrors; C(sram_threshold_exceeded), whether the caches made more errors
                than a good card does, from nvmlDeviceGetSramEccErrorStatus.
              type: raw
              sample:
                enabled: true
                corrected_volatile: 0
                uncorrected_volatile: 0
                corrected_total: 3
                uncorrected_total: 0
                sram_threshold_exceeded: false
            retired_pages:
              description: >-
                Numbers of pages of memory that are out of use, for errors of a C(single_bit) or a C(double_bit), and whether more are
                C(pending) until a reboot (nvmlDeviceGetRetiredPages). Cards before Ampere have them.
              type: raw
              sample: not_applicable
            remapped_rows:
              description: >-
                Numbers of rows of memory that spare ones replace, for errors that were C(corrected) or C(uncorrected), whether more are
                C(pending) until the next reset, and whether there was a C(failure) to replace one (nvmlDeviceGetRemappedRows). Data
                center cards since Ampere have them.
              type: raw
              sample: {corrected: 0, uncorrected: 0, pending: false, failure: false}
            recovery_action:
              description: >-
                What the driver wants done to the GPU: C(none), C(gpu_reset), C(node_reboot), C(drain_p2p), C(drain_and_reset),
                C(recover_imex_domain), C(bus_reset) or C(system_reboot) (NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, drivers since 570).
              type: str
              sample: none
            throttle:
              description: >-
                Why the clocks are lower than they could be at this moment (nvmlDeviceGetCurrentClocksEventReasons, drivers since 535). Bad
                signs are C(hw_slowdown), C(hw_thermal_slowdown), C(hw_power_brake_slowdown) and C(sw_thermal_slowdown); C(gpu_idle),
                C(applications_clocks_setting), C(sw_power_cap), C(sync_boost), C(display_clock_setting), C(board_limit) and C(reliability)
                are not.
              type: raw
              sample: [gpu_idle]
            temperature_c:
              description: Temperature of the chip in degrees Celsius (nvmlDeviceGetTemperature).
              type: raw
              sample: 41
            power:
              description: >-
                In watts C(limit_w) (in force), C(default_limit_w), C(max_limit_w) and C(draw_w) (nvmlDeviceGetPowerManagementLimit,
                DefaultLimit and LimitConstraints, nvmlDeviceGetPowerUsage).
              type: raw
              sample: {limit_w: 250.0, default_limit_w: 250.0, max_limit_w: 287.5, draw_w: 11.2}
            compute_mode:
              description: C(default), C(exclusive_process) or C(prohibited) (nvmlDeviceGetComputeMode).
              type: str
              sample: default
            bar1_mib:
              description: >-
                Size in MiB of the window through which the processor reaches the card's memory (nvmlDeviceGetBAR1MemoryInfo). With
                resizable BAR it is as large as the memory, else mostly 256.
              type: raw
              sample: 16384
            mig:
              description: >-
                C(enabled) and C(pending) (after the next reset) of MIG, and C(instances), the parts that the card is split into, each with
                C(uuid), C(name) and C(memory_mib) (nvmlDeviceGetMigMode, nvmlDeviceGetMigDeviceHandleByIndex).
              type: raw
              sample: not_applicable
        source:
          description: The best source that names it, C(nvml), C(libcuda) or C(pci).
          type: str
          sample: nvml
    driver:
      description: The driver, as loaded, as installed and as it will load.
      type: dict
      contains:
        loaded_version:
          description: Version of the loaded module, from /proc/driver/nvidia/version or /sys; null when none is loaded.
          type: str
          sample: 580.95.05
        loaded_flavor:
          description: C(open) or C(proprietary), from /proc/driver/nvidia/version.
          type: str
          sample: open
        userspace_version:
          description: >-
            Version of the libcuda that programs get, from the name of the file behind libcuda.so.1; in WSL2 from NVML. Null
            when there is none.
          type: str
          sample: 580.95.05
        branch:
          description: Branch of the installed driver, the first number of its version.
          type: int
          sample: 580
        flavor:
          description: >-
            Flavor of the installed modules, C(open) or C(proprietary), from the running kernel's module, another kernel's, or
            the packages' names.
          type: str
          sample: open
        source:
          description: >-
            Where the driver comes from: C(nvidia) (NVIDIA's repository) or C(distro), as its packages do, C(runfile)
            (NVIDIA's .run installer, which leaves its uninstaller), C(wsl), or null.
          type: str
          sample: nvidia
        packages:
          description: >-
            Driver packages that dpkg or rpm knows, with C(name), C(version) (with epoch), C(architecture), C(source), C(held) (apt's
            hold, or a version lock that dnf heeds) and C(state) in dpkg's words; C(config-files) means removed but not purged.
            C(source) is C(nvidia) by section, maintainer or the lists of a repository whose origin is NVIDIA, C(distro) by
            maintainer or vendor, else C(unknown).
          type: list
          elements: dict
          sample:
            - {name: nvidia-open, version: 580.95.05-1, architecture: amd64, source: nvidia, held: false, state: installed}
        interrupted:
          description: >-
            What an interrupted transaction left half-done, in words. With dpkg, any package that is neither installed nor gone, and
            changes that wait to be merged; with rpm, the driver's packages that are there twice, and dnf's last transaction where it
            was the driver's and never ended. Null while somebody changes packages.
          type: list
          elements: str
          sample: [nvidia-kernel-dkms is half-configured]
        pins:
          description: >-
            Records of apt_preferences(5) that name NVIDIA or CUDA, and dnf's version locks, with C(file), C(packages),
            C(version) (null for a pin by release), C(pin) (as written), C(priority) (null for a version lock) and C(from_package)
            (the package that ships the file).
          type: list
          elements: dict
          sample:
            - file: /etc/apt/preferences.d/nvidia-driver-pin
              packages: cuda-drivers* src:nvidia-open:any
              version: 580.*
              pin: version 580.*
              priority: 1000
              from_package: nvidia-driver-pinning-580
        modules_by_kernel:
          description: >-
            For each kernel of RV(observation.os.kernels) the module that it would load, with C(version), C(flavor), C(signer) (who signed
            it, C(signed) where the signature does not say, null for an unsigned one) and C(path), read from the file itself, or
            null where it has none.
          type: dict
          sample:
            6.12.94+deb13-amd64:
              version: 580.95.05
              flavor: open
              signer: DKMS module signing key
              path: /lib/modules/6.12.94+deb13-amd64/updates/dkms/nvidia.ko.xz
        nouveau_in_initramfs:
          description: >-
            For each kernel of RV(observation.os.kernels) whether its initramfs may still load nouveau: true where it is older than the
            block list, false where it is newer, there is none, or the kernel's command line blocks nouveau; null without a block list.
          type: dict
          sample: {6.12.94+deb13-amd64: false}
        nouveau_loaded:
          description: Whether the module nouveau is loaded.
          type: bool
          sample: false
        nova_core_loaded:
          description: Whether the module nova_core is loaded.
          type: bool
          sample: false
        persistence:
          description: The persistence daemon's unit, from systemd's folders, with C(unit), C(present), C(enabled) and C(active).
          type: dict
          sample: {unit: nvidia-persistenced.service, present: true, enabled: true, active: true}
        cuda_api:
          description: The newest CUDA version that the driver speaks, from NVML or libcuda; null without a driver.
          type: str
          sample: "13.0"
        libcuda:
          description: >-
            What libcuda said when asked with O(cuda=true): C(result) (of cuInit, 0 for success), C(error) (text or null) and C(gpus)
            (their number). Null when it was not asked or gave no answer.
          type: dict
          sample: {result: 0, error: null, gpus: 1}
        device_nodes:
          description: Whether the device nodes are there that CUDA programs open; /dev/nvidia0 and so on for each GPU that is served.
          type: dict
          sample: {/dev/nvidiactl: true, /dev/nvidia-uvm: true, /dev/nvidia-uvm-tools: true, /dev/nvidia0: true}
        virtual:
          description: >-
            For each GPU by its PCI address C(passthrough) where this host gives it to a guest (vfio-pci), C(vgpu) where it is a shared
            one of NVIDIA's vGPU software, in the guest or on the host, else null.
          type: dict
          sample: {"0000:01:00.0": null}
        mismatch:
          description: Whether the loaded module and user space have different versions; null unless both are there.
          type: bool
          sample: false
        reboot_required:
          description: >-
            Whether the loaded module differs from what is installed, or the package manager asks for a reboot because of a kernel or
            the driver.
          type: bool
          sample: false
        processes:
          description: >-
            Processes that hold /dev/nvidia*, with C(pid), C(command), C(user), C(kind): C(compute), C(graphics) (desktop), or
            C(daemon) (services and monitors), C(container): the first 12 digits of its id or its name, null outside of
            one, and C(gpus): the PCI addresses on which NVML sees it compute. Null where they cannot be seen.
          type: list
          elements: dict
          sample: [{pid: 812, command: nvidia-persiste, user: nvpd, kind: daemon, container: null, gpus: []}]
        journal:
          description: What the role nvidia_driver noted at its last change (/var/lib/gpufleet/driver.json), or null.
          type: dict
          sample: null
        staged:
          description: >-
            What is downloaded and tried for the next change, or null: C(branch), C(flavor), C(version) and C(packages) (digest).
          type: dict
          sample: null
        generations:
          description: >-
            Drivers that one can go back to without network, the oldest first, with C(n), C(branch), C(version), C(flavor), C(created)
            and C(environments) (name to release).
          type: list
          elements: dict
          sample:
            - n: 1
              branch: 550
              version: 550.163.01
              flavor: proprietary
              created: "2026-11-22T19:00:00Z"
              environments: {base: 2.9.1-cu128-1a2b3c4d}
    environments:
      description: Environments below O(root), by name.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the environment.
          type: str
          sample: base
        path:
          description: Its folder.
          type: str
          sample: /opt/gpufleet/envs/base
        current:
          description: Id of the release in use, or null.
          type: str
          sample: 2.9.1-cu128-1a2b3c4d
        previous:
          description: Id of the release that was in use before, or null.
          type: str
          sample: null
        releases:
          description: All releases, with C(id) and C(stamped) (built and checked to the end).
          type: list
          elements: dict
          sample: [{id: 2.9.1-cu128-1a2b3c4d, stamped: true}]
        leftovers:
          description: Ids of the releases whose removal began and did not end. They are no longer among C(releases).
          type: list
          elements: str
          sample: []
        python:
          description: Python version of the current release, from pyvenv.cfg.
          type: str
          sample: 3.13.5
        interpreter_ok:
          description: >-
            Whether the current release's interpreter, a symlink into the system, still exists and still is the version that the release
            was built with. An upgrade of the system can take it away.
          type: bool
          sample: true
        owner:
          description: Account that the current release was built for, from its stamp; without one, the owner of the folder.
          type: str
          sample: root
        group:
          description: Group that may read the environment, from the stamp; without one, the group of the folder.
          type: str
          sample: root
        torch:
          description: >-
            PyTorch of the current release, null where there is none: C(version) and C(cuda) from torch/version.py (read as
            text), C(distribution_version) from the installed metadata, C(arch_flags) from the stamp.
          type: dict
          sample:
            version: 2.9.1+cu128
            distribution_version: 2.9.1+cu128
            cuda: "12.8"
            arch_flags: [sm_70, sm_75, sm_80, sm_86, sm_90, sm_100, sm_120]
        companions:
          description: Versions of torchvision and torchaudio, from their version.py or the installed metadata.
          type: dict
          sample: {torchvision: 0.24.1+cu128, torchaudio: 2.9.1+cu128}
        integrity:
          description: >-
            The current release against its manifest (every path, size and link, and the contents where O(integrity=hashes)): C(status)
            (C(ok), C(damaged) or C(unstamped)), the numbers of C(missing), C(changed) and C(added) files, and at most five C(examples).
          type: dict
          sample: {status: ok, missing: 0, changed: 0, added: 0, examples: []}
        stamp:
          description: Content of the current release's stamp, or null.
          type: dict
          sample: null
        stamp_digest:
          description: SHA-256 of the file of the current release's stamp.
          type: str
          sample: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        verdict:
          description: >-
            The stamp of the last proof, as M(gpufleet.workstation.cuda_verify) wrote it. Whether it still says anything of the host
            as it is now, the plan decides. Null where there is none, and where it cannot be trusted; RV(observation.unknown)
            says so then.
          type: dict
          sample: null
    runtime:
      description: >-
        What the files of each launch context set. C(etc_environment) has C(block) (the text between the collection's markers,
        or null) and C(values) (the last value of each variable asked for); C(profile_d), C(environment_d) and
        C(system_conf_d) have C(path) and C(values).
      type: dict
      sample:
        etc_environment: {block: "TOKENIZERS_PARALLELISM=false\n", values: {TOKENIZERS_PARALLELISM: "false"}}
        profile_d: {path: /etc/profile.d/gpufleet.sh, values: {TOKENIZERS_PARALLELISM: "false"}}
        environment_d: {path: /etc/environment.d/50-gpufleet.conf, values: {TOKENIZERS_PARALLELISM: "false"}}
        system_conf_d: {path: /etc/systemd/system.conf.d/50-gpufleet.conf, values: {TOKENIZERS_PARALLELISM: "false"}}
        breaking:
          - where: /etc/profile.d/cuda.sh
            name: CUDA_LAUNCH_BLOCKING
            value: "1"
            why: every kernel launch waits for the GPU, which slows all programs; it is for debugging
    files:
      description: >-
        For each path of O(files) its C(sha256) (null for what is not a file), C(mode), C(owner), C(group) and C(type)
        (C(file), C(directory), C(link) or C(other)); symlinks are not followed. Null where nothing is there.
      type: dict
      sample:
        /etc/profile.d/gpufleet.sh:
          sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
          mode: "0644"
          owner: root
          group: root
          type: file
    health:
      description: What can stop an installation, and what happened to the GPUs. Their own state is in RV(observation.gpus).
      type: dict
      contains:
        disk:
          description: >-
            C(free_mib) (in MiB), C(free_inodes), C(file_system) (its type, null where that is not known) and C(read_only) (whether nothing
            can be written, as after errors of a disk) of the file system that O(root) is on, or will be.
          type: dict
          sample: {/opt/gpufleet/envs: {free_mib: 401235, free_inodes: 26214400, file_system: ext4, read_only: false}}
        clock_synchronized:
          description: Whether the clock follows a time source, as the kernel sees it.
          type: bool
          sample: true
        locks:
          description: >-
            Locks of dpkg, apt, rpm, dnf, zypper and of this collection's own change of drivers that are held now, with C(path) and
            C(holder).
          type: list
          elements: dict
          sample: [{path: /var/lib/dpkg/lock-frontend, holder: unattended-upgr (process 812)}]
        xid:
          description: >-
            The driver's Xid messages of this boot (/dev/kmsg) and of the last 30 days (the journal), the newest last, at most 100.
            Those of one boot with the same GPU and number are one entry. Null where no log can be read; empty where no driver is
            loaded and no GPU is remembered.
          type: list
          elements: dict
          contains:
            at:
              description: When it came first, in UTC.
              type: str
              sample: "2026-11-22T18:04:10Z"
            last_at:
              description: When it came last, in UTC.
              type: str
              sample: "2026-11-22T18:04:12Z"
            count:
              description: How often it came.
              type: int
              sample: 3
            this_boot:
              description: Whether that was since the last boot.
              type: bool
              sample: true
            pci_address:
              description: The GPU.
              type: str
              sample: "0000:01:00.0"
            number:
              description: Its number.
              type: int
              sample: 79
            title:
              description: What the number means, in a few words.
              type: str
              sample: GPU has fallen off the bus
            action:
              description: What has to be done, C(ignore), C(restart_app), C(reset), C(reboot) or C(inspect).
              type: str
              sample: reboot
            severity:
              description: C(low), C(medium), C(high) or C(critical).
              type: str
              sample: critical
            process:
              description: The program that used the GPU, with its process id, where the first message names one.
              type: str
              sample: python (4711)
            text:
              description: The rest of the first message, at most 300 characters.
              type: str
              sample: GPU has fallen off the bus.
        missing_gpus:
          description: >-
            GPUs that should be here and are not: those of the last proof that passed (/var/lib/gpufleet/gpus.json, else
            RV(observation.driver.journal)) that neither the PCI bus nor the driver shows, and those that are lost. Null where it is not
            known which are here.
          type: list
          elements: dict
          contains:
            pci_address:
              description: Where it is, or was.
              type: str
              sample: "0000:02:00.0"
            uuid:
              description: Its UUID, where that is known.
              type: str
              sample: GPU-6f3a2f0e-31c5-4a07-9a75-0c3c0fd4e6a1
            name:
              description: Its name, as far as it is known.
              type: str
              sample: NVIDIA GeForce RTX 3090
            since:
              description: A time in UTC, see C(since_what); null where none is known.
              type: str
              sample: "2026-11-22T18:04:10Z"
            since_what:
              description: >-
                C(xid), the driver said at that time that it fell off the bus; C(boot), it is missing since that boot; C(after), it went
                at some time after that.
              type: str
              sample: xid
            text:
              description: All this in a sentence.
              type: str
              sample: >-
                NVIDIA GeForce RTX 3090 at 0000:02:00.0 is missing since 2026-11-22T18:04:10Z (Xid 79): neither the PCI bus nor the driver
                shows it
    urls:
      description: For each address of O(urls) its C(status) (HTTP) and C(error), which is null where it can be used.
      returned: when O(urls) is given
      type: dict
      sample: {https://download.pytorch.org/whl/cu128/torch/: {status: 200, error: null}}
    foreign:
      description: >-
        What others installed that people meet beside the environments: looked for in well-known places (the system's packages, /opt, the
        first 100 homes, profile files, pip's configuration, the session that asks), read only, never executed, within 5 seconds.
        Null where that did not work.
      type: list
      elements: dict
      contains:
        kind:
          description: >-
            C(venv), C(conda), C(system) and C(user) are places that hold a torch (conda is named without one, too);
            C(search_path) sets PYTHONPATH or PYTHONHOME, C(conda_path) puts conda on the PATH, C(index) gives pip a second index;
            C(taken) is a directory where a wanted environment belongs and that is none of this collection's.
          type: str
          sample: venv
        path:
          description: Where it is, or which file says so.
          type: str
          sample: /home/ann/torch-env
        what:
          description: What it is or sets, without credentials.
          type: str
          sample: a virtual environment
        torch:
          description: The torch that is found there, with C(version) and C(cuda) of its version file, or null.
          type: dict
          sample: {version: 2.6.0+cu124, cuda: "12.4"}
    unknown:
      description: >-
        What could not be read: C(what) names the key (or C(nvml) or C(libcuda), when that gave no answer), C(why) says the
        reason. The key is then null, or holds what could be read.
      type: list
      elements: dict
      sample: [{what: driver.processes, why: only root sees which files other users' processes hold}]
"""

import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe

ARGUMENTS = {
    "root": {"type": "str", "default": "/opt/gpufleet/envs"},
    "environments": {"type": "list", "elements": "str", "default": []},
    "files": {"type": "list", "elements": "str", "default": []},
    "variables": {"type": "list", "elements": "str", "default": ["TOKENIZERS_PARALLELISM"]},
    "cuda": {"type": "bool", "default": False},
    "urls": {"type": "list", "elements": "str", "default": []},
    "integrity": {"type": "str", "choices": ["sizes", "hashes"], "default": "sizes"},
    "time_limit": {"type": "int", "default": 10},
}
_TIME_LIMITS = range(1, 301)
_ENVIRONMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def invalid(parameters: dict[str, Any]) -> str | None:
    """Return what is wrong with the options, or None."""
    for path in [parameters["root"], *parameters["files"]]:
        if not os.path.isabs(path) or os.path.normpath(path) != path or "\0" in path:
            return f"{path!r} is not an absolute path in its shortest form, such as /opt/gpufleet/envs"
    for name in parameters["environments"]:
        if not _ENVIRONMENT.match(name):
            return f"environments: {name!r} is no name of an environment (letters, digits, dot, underscore, hyphen)"
    for name in parameters["variables"]:
        if not _VARIABLE.match(name):
            return f"variables: {name!r} is no name of an environment variable"
    if parameters["time_limit"] not in _TIME_LIMITS:
        return f"time_limit: {parameters['time_limit']} is not between 1 and {_TIME_LIMITS[-1]} seconds"
    return None


def main() -> None:
    """Validate, observe, answer."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    problem = invalid(module.params)
    if problem:
        module.fail_json(msg=problem)
    request = Request(**{name: module.params[name] for name in ARGUMENTS})
    module.exit_json(changed=False, observation=observe(Host(), request))


if __name__ == "__main__":
    main()
