/* The viewer's own part: panes that share one place, one window and one overlay; NiiVue draws them. */
"use strict";

(() => {
  const AXIAL = 0;
  const ACROSS = [2, 1, 0]; // the voxel axis that runs through the slices of a plane
  // Labels as they are drawn: far apart, so that each has colors of its own in a map of 256.
  const CODE = { liver: 60, liverRim: 100, lesion: 160, lesionRim: 220 };
  const FILL_OPACITY = 0.2, LABELED = ["fills.nii", "rims.nii"];
  const at = (id) => document.getElementById(id);
  const panes = [];
  let following = false;

  /* Where the volumes are: in this page, or in the `viewer.html` that it names. */
  async function blocks() {
    const address = document.body.dataset.page;
    let page = document;
    if (address) {
      const answer = await fetch(address, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(`the images cannot be had (${answer.status})`);
      page = new DOMParser().parseFromString(await answer.text(), "text/html");
    }
    const found = [...page.querySelectorAll("script[type='application/gzip']")];
    const volumes = {};
    for (const block of found) {
      const { name, title } = block.dataset;
      volumes[name] = { title, nifti: await unpacked(block.textContent) };
      block.remove(); // its text is as large as the volume
    }
    return volumes;
  }

  async function unpacked(base64) {
    const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  /* Labels (0, 1 liver, higher a lesion) as a file of codes: inside, and rim within a plane. */
  function coded(nifti, plane) {
    const view = new DataView(nifti);
    const size = [42, 44, 46].map((byte) => view.getInt16(byte, true));
    const from = view.getFloat32(108, true), total = size[0] * size[1] * size[2];
    const label = new (view.getInt16(72, true) === 8 ? Uint8Array : Uint16Array)(nifti, from, total);
    const whole = new Uint8Array(from + total), codes = whole.subarray(from);
    whole.set(new Uint8Array(nifti, 0, from));
    const head = new DataView(whole.buffer);
    head.setInt16(70, 2, true); // unsigned
    head.setInt16(72, 8, true); // of 8 bit
    const steps = [1, size[0], size[0] * size[1]];
    const [a, b] = [0, 1, 2].filter((axis) => axis !== ACROSS[plane]);
    const at = [0, 0, 0];
    // A lesion is part of the liver: the liver has no rim along it.
    const apart = (one, other) => (one === 1 ? other === 0 : other !== one);
    for (let n = 0; n < total; n++) {
      const one = label[n];
      if (one) {
        at[0] = n % size[0]; at[1] = Math.floor(n / steps[1]) % size[1]; at[2] = Math.floor(n / steps[2]);
        const rim = (at[a] > 0 && apart(one, label[n - steps[a]]))
          || (at[a] + 1 < size[a] && apart(one, label[n + steps[a]]))
          || (at[b] > 0 && apart(one, label[n - steps[b]]))
          || (at[b] + 1 < size[b] && apart(one, label[n + steps[b]]));
        if (one === 1) codes[n] = rim ? CODE.liverRim : CODE.liver;
        else codes[n] = rim ? CODE.lesionRim : CODE.lesion;
      }
    }
    return { file: whole.buffer, codes };
  }

  function color(hex) {
    return [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));
  }

  /* A map of 256 colors: each code, up to halfway to its neighbors, and whether it is seen. What is
     not seen has its neighbor's color all the same, since colors are blended at edges. */
  function labelColors(seen) {
    const { liver, lesions } = document.body.dataset;
    const map = { R: [], G: [], B: [], A: [], I: [] };
    [0, ...Object.values(CODE)].forEach((code, n, all) => {
      const before = n ? Math.floor((code + all[n - 1]) / 2) + 1 : 0;
      const after = n + 1 < all.length ? Math.floor((code + all[n + 1]) / 2) : 255;
      const [red, green, blue] = color(code < CODE.lesion ? liver : lesions);
      for (const index of [before, after]) {
        map.R.push(red); map.G.push(green); map.B.push(blue);
        map.A.push(seen.includes(code) ? 255 : 0); map.I.push(index);
      }
    });
    return map;
  }

  /* NiiVue has one opacity a volume, so that rims and fills are two, of the same labels. */
  function setColors(nv) {
    const rims = at("liver").checked ? [CODE.liverRim] : [], lesions = at("lesions").checked;
    nv.addColormap("rims", labelColors(lesions ? [...rims, CODE.lesionRim] : rims));
    nv.addColormap("fills", labelColors(lesions ? [CODE.lesion] : []));
  }

  function heatColors() {
    const stops = document.body.dataset.uncertainty.split(" ").map(color);
    const channel = (k) => [stops[0][k], ...stops.map((stop) => stop[k])];
    return { R: channel(0), G: channel(1), B: channel(2), A: [0, 255, 255, 255], I: [0, 1, 128, 255] };
  }

  async function image(nifti, name, colormap, more) {
    const made = await niivue.NVImage.loadFromUrl({ url: nifti, name: `${name}.nii`, ...more });
    made.colormap = colormap;
    return made;
  }

  async function addPane(name, volumes, labels) {
    const figure = document.createElement("figure"), box = document.createElement("div");
    const caption = document.createElement("figcaption"), canvas = document.createElement("canvas");
    caption.append(document.createElement("strong"), document.createElement("span"));
    caption.firstChild.textContent = volumes[name].title;
    canvas.setAttribute("aria-label", `Slices, ${volumes[name].title}`);
    box.append(canvas);
    figure.append(box, caption);
    at("panes").append(figure);
    const { DRAG_MODE: drag } = niivue;
    const nv = new niivue.Niivue({
      isRadiologicalConvention: true, isForceMouseClickToVoxelCenters: true,
      sliceType: AXIAL, dragAndDropEnabled: false, logLevel: "error",
      crosshairColor: [1, 0.9, 0.3, 0.75], crosshairWidth: 0.35,
      crosshairWidthUnit: "percent", crosshairGap: 12, showAllOrientationMarkers: true, fontColor: [0.85, 0.88, 0.92, 1],
      clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "",
      mouseEventConfig: {
        leftButton: { primary: drag.crosshair, withCtrl: drag.pan },
        rightButton: drag.windowing, centerButton: drag.pan,
      },
    });
    await nv.attachToCanvas(canvas, false);
    // With every window NiiVue computes the gradients of a 3D rendering, which is never shown here.
    nv.blurShader = nv.sobelFirstOrderShader = { use() {}, uniforms: {} };
    setColors(nv);
    nv.addColormap("heat", heatColors());
    const all = { cal_min: 0, cal_max: 255 };
    const back = await image(volumes[name].nifti, name, "gray"), doubt = volumes.uncertainty;
    // All at once: each `addVolume` would draw those before it anew.
    nv.volumes = [
      back,
      ...(doubt ? [await image(doubt.nifti, "uncertainty", "heat", { opacity: 0 })] : []),
      await image(labels, "fills", "fills", { ...all, opacity: FILL_OPACITY }),
      await image(labels, "rims", "rims", all),
    ];
    nv.setVolume(back, 0);
    const pane = { name, nv, value: caption.lastChild };
    panes.push(pane);
    nv.sync = () => follow(pane);
  }

  /* What was done to one pane is done to the others: NiiVue calls this whenever it has drawn. */
  function follow(leader) {
    if (following || document.body.dataset.state !== "ready") return;
    following = true;
    const { scene, volumes: [{ cal_min: low, cal_max: high }] } = leader.nv;
    for (const { nv } of panes) {
      if (nv === leader.nv) continue;
      nv.scene.crosshairPos = scene.crosshairPos.slice();
      nv.scene.pan2Dxyzmm = scene.pan2Dxyzmm.slice();
      setWindow(nv, low, high);
      nv.drawScene();
    }
    following = false;
    tell();
  }

  function setWindow(nv, low, high) {
    const volume = nv.volumes[0];
    if (volume.cal_min === low && volume.cal_max === high) return;
    [volume.cal_min, volume.cal_max] = [low, high];
    nv.refreshLayers(volume, 0);
  }

  /* Where the cross-hair is, and what is there, in words. */
  function tell() {
    const { nv } = panes[0], { cal_min: low, cal_max: high, dimsRAS: dims } = nv.volumes[0];
    const axis = ACROSS[nv.opts.sliceType], voxel = nv.frac2vox(nv.scene.crosshairPos);
    const mm = nv.frac2mm(nv.scene.crosshairPos, 0, true);
    const word = (value, letters) => `${letters[value < 0 ? 1 : 0]} ${Math.abs(value).toFixed(1)}`;
    at("slice").max = dims[axis + 1] - 1;
    at("slice").value = voxel[axis];
    at("level").textContent = `${voxel[axis] + 1} of ${dims[axis + 1]}`;
    // NiiVue's world is RAS, ours LPS.
    at("place").dataset.lps = [-mm[0], -mm[1], mm[2]].map((v) => v.toFixed(2)).join(" ");
    at("place").textContent = `${word(mm[0], "RL")}, ${word(mm[1], "AP")}, ${word(mm[2], "SI")} mm`;
    for (const pane of panes) {
      const volume = pane.nv.volumes[0], hu = volume.getValue(...volume.mm2vox(mm));
      pane.value.textContent = `${Math.round(hu)} HU`.replace("-", "\u2212");
    }
    const chosen = [...at("window").options].find((o) => o.value === `${low} ${high}`);
    at("window").selectedIndex = chosen ? chosen.index : at("window").options.length - 1;
    if (!chosen) {
      const numbers = `${Math.round((low + high) / 2)} / ${Math.round(high - low)}`;
      at("window").selectedOptions[0].textContent = `by hand ${numbers}`;
    }
  }

  function move(frac) {
    const { nv } = panes[0];
    nv.scene.crosshairPos = frac;
    nv.drawScene();
  }

  /* Enlarge around the cross-hair, which keeps its place or comes to the middle. */
  function zoom(factor, centered) {
    const { nv } = panes[0], [x, y, z, old] = nv.scene.pan2Dxyzmm;
    const mm = nv.frac2mm(nv.scene.crosshairPos), middle = nv.frac2mm([0.5, 0.5, 0.5]);
    const shift = (pan, k) => (centered ? middle[k] - factor * mm[k] : pan + (old - factor) * mm[k]);
    nv.setPan2Dxyzmm(factor === 1 ? [0, 0, 0, 1] : [...[x, y, z].map(shift), factor]);
  }

  function show(row) {
    for (const one of document.querySelectorAll("tr[data-lesion]")) one.removeAttribute("aria-current");
    row.setAttribute("aria-current", "true");
    const [left, posterior, superior] = row.dataset.center.split(" ").map(Number);
    const { nv } = panes[0];
    const voxel = nv.frac2vox(nv.mm2frac([-left, -posterior, superior], 0, true));
    move(nv.vox2frac(voxel));
    if (nv.scene.pan2Dxyzmm[3] > 1) zoom(nv.scene.pan2Dxyzmm[3], true);
  }

  /* As many columns as make the slices largest. */
  function arrange() {
    const { nv } = panes[0], { dimsRAS: dims, pixDimsRAS: size } = nv.volumes[0];
    const [x, y, z] = [1, 2, 3].map((k) => dims[k] * size[k]);
    const [width, height] = [[x, y], [x, z], [y, z]][nv.opts.sliceType];
    const room = at("panes").getBoundingClientRect();
    const scale = (n) => Math.min(room.width / n / width, room.height / Math.ceil(panes.length / n) / height);
    let best = panes.length;
    for (let n = best - 1; n > 0; n--) if (scale(n) > scale(best)) best = n;
    at("panes").style.gridTemplateColumns = `repeat(${best}, minmax(0, 1fr))`;
  }

  function redraw() {
    for (const { nv } of panes) {
      setColors(nv);
      const doubt = nv.volumes.find((volume) => volume.name === "uncertainty.nii");
      if (doubt) doubt.opacity = at("uncertainty").checked ? 1 : 0;
      nv.updateGLVolume();
    }
  }

  function listen(labels) {
    at("plane").onchange = () => {
      const { codes } = coded(labels, Number(at("plane").value));
      for (const { nv } of panes) {
        for (const volume of nv.volumes) if (LABELED.includes(volume.name)) volume.img = codes;
        nv.updateGLVolume();
        nv.setSliceType(Number(at("plane").value));
      }
      arrange();
      tell();
    };
    at("slice").oninput = () => {
      const { nv } = panes[0], voxel = [...nv.frac2vox(nv.scene.crosshairPos)];
      voxel[ACROSS[nv.opts.sliceType]] = Number(at("slice").value);
      move(nv.vox2frac(voxel));
    };
    at("window").onchange = () => {
      const [low, high] = at("window").value.split(" ").map(Number);
      setWindow(panes[0].nv, low, high);
      panes[0].nv.drawScene();
    };
    at("opacity").oninput = () => {
      for (const { nv } of panes) {
        nv.overlayAlphaShader = Number(at("opacity").value);
        nv.drawScene();
      }
    };
    for (const id of ["liver", "lesions", "uncertainty"]) at(id).onchange = redraw;
    at("zoom").oninput = () => zoom(Number(at("zoom").value), false);
    for (const row of document.querySelectorAll("tr[data-lesion]")) row.onclick = () => show(row);
    window.addEventListener("resize", arrange);
  }

  async function start() {
    const volumes = await blocks();
    const phases = Object.keys(volumes).filter((name) => !["labels", "uncertainty"].includes(name));
    if (!phases.length) throw new Error("there are no images in it");
    const labels = coded(volumes.labels.nifti, AXIAL).file;
    for (const name of phases) await addPane(name, volumes, labels);
    at("state").remove();
    for (const one of document.querySelectorAll(".doubt")) one.hidden = !volumes.uncertainty;
    listen(volumes.labels.nifti);
    arrange();
    at("opacity").oninput();
    document.body.dataset.state = "ready";
    const first = document.querySelector("tr[data-lesion]");
    if (first) show(first);
    else move([0.5, 0.5, 0.5]);
  }

  start().catch((error) => {
    document.body.dataset.state = "failed";
    at("state").textContent = `The images cannot be shown: ${error.message}. The viewer needs WebGL 2.`;
  });
})();
