// The JupyterLab extension, as a module federation container written by hand: init() is handed what JupyterLab
// shares, get() returns the plugins (https://webpack.js.org/concepts/module-federation/). There is no build step:
// JupyterLab's toolchain would need Node.js and some hundred npm packages to wrap these lines in the same two functions.
// It would not survive JupyterLab 5 better: either way the container is loaded by these two functions, and what breaks
// is an interface of JupyterLab's that is used below.
(() => {
  'use strict';

  const OPEN = 'rbkit:open';
  const CATEGORY = 'Other';
  const POLL_MS = 2000;
  const ICON = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">
    <g class="jp-icon3" fill="#616161">
      <path d="M3 18h18v3H3zM5 13h14v3H5zM5 8h8v3H5zM15 8h3v3h-3zM7 3h4v3H7z"/>
    </g>
  </svg>`;

  let shared;

  /** Return a module that JupyterLab shares; an empty one if it does not (Jupyter Notebook shares fewer). */
  async function load(name) {
    const [version] = Object.values(shared[name] ?? {});
    return version ? (await version.get())() : {};
  }

  // The dashboard's tabs

  /** Return whether a page with these policies may be shown in a frame of this page. */
  function mayFrame(policies) {
    return policies.split(/[,;]/).every(directive => {
      const [name, ...sources] = directive.trim().toLowerCase().split(/\s+/);
      return name !== 'frame-ancestors' || sources.some(isThisOrigin);
    });
  }

  /** Return whether a source of a policy is this page's origin; if in doubt, no: a browser tab always works. */
  function isThisOrigin(source) {
    return ["'self'", '*', location.protocol, location.host, location.origin].includes(source);
  }

  /** Call `open` with the target of a link to the dashboard that is clicked, instead of opening a browser tab. */
  function followLinks(url, open) {
    const onclick = event => {
      const link = event.target instanceof Element ? event.target.closest('a[href]') : null;
      if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) {
        return;
      }
      const { origin, pathname, searchParams } = new URL(link.href);
      if (origin + pathname === url) {
        event.preventDefault();
        event.stopPropagation();
        open(searchParams.get('target') ?? '');
      }
    };
    document.addEventListener('click', onclick, true); // before JupyterLab's own handlers of links
  }

  // The item in the status bar

  /** Return the id of the kernel of the notebook or console in front, or of the one before a tab without a kernel. */
  function makeActiveKernel(shell) {
    let last = null;
    return () => {
      const current = shell.currentWidget;
      last = current?.sessionContext ? current : last;
      return last && !last.isDisposed ? (last.sessionContext.session?.kernel?.id ?? null) : null;
    };
  }

  /** Return what the item says of a kernel's figures and those before. */
  function describe(figures, before, trans) {
    const { memory_bytes: memory, records_memory: memoryIsOn, records_cpu: cpuIsOn } = figures;
    const elapsed = figures.time - before?.time;
    const computed = figures.cpu_seconds - before?.cpu_seconds;
    const isKnown = before?.pid === figures.pid && figures.cpu_seconds !== null && elapsed > 0;
    const recorded = [memoryIsOn && trans.__('memory'), cpuIsOn && trans.__('CPU')].filter(Boolean);
    return [
      memory === null ? '' : trans.__('%1 MiB', Math.round(memory / 2 ** 20)),
      isKnown ? trans.__('CPU %1 %', Math.round((100 * computed) / elapsed)) : '',
      figures.target === null
        ? trans.__('no profiler')
        : memoryIsOn === null
          ? trans.__('the profiler does not answer')
          : recorded.length
            ? trans.__('recording %1', recorded.join(', '))
            : trans.__('not recording')
    ]
      .filter(Boolean)
      .join(' · ');
  }

  function makeItem({ Widget, trans, onclick }) {
    const button = document.createElement('button');
    button.type = 'button';
    button.title = trans.__('The kernel of this notebook or console. Click to open its rbkit dashboard.');
    button.className = 'jp-StatusBar-TextItem';
    button.style.cssText = 'border:0;padding:0 4px;background:none;color:inherit;font-family:inherit;cursor:pointer';
    button.onclick = onclick;
    const item = new Widget();
    item.id = 'rbkit-kernel';
    item.node.append(button);
    return { item, button };
  }

  /** Show the figures of the active kernel, and keep them up to date. */
  async function addItem({ statusBar, shell, url, settings, trans, open }) {
    const { Dialog, showDialog } = await load('@jupyterlab/apputils');
    const { ServerConnection } = await load('@jupyterlab/services');
    const { Poll } = await load('@lumino/polling');
    const { Widget } = await load('@lumino/widgets');

    const activeKernel = makeActiveKernel(shell);
    let shown = null; // the figures, with the kernel's id

    const explain = () =>
      showDialog({
        title: trans.__('No profiler runs in this kernel'),
        body: trans.__(
          'Start one in a cell: %load_ext tornado_rbkit, then %rbkit start. The module tornado_rbkit must be installed in the environment of the kernel.'
        ),
        buttons: [Dialog.okButton()]
      });
    const onclick = () => (shown?.target ? open(shown.target) : explain());
    const { item, button } = makeItem({ Widget, trans, onclick });

    const draw = (id, figures) => {
      const before = shown?.id === id ? shown : null;
      shown = figures && { ...figures, id };
      button.textContent = figures ? `rbkit: ${describe(figures, before, trans)}` : '';
      item.setHidden(!figures);
    };
    const update = async () => {
      const id = activeKernel();
      const answer = id === null ? null : await ServerConnection.makeRequest(`${url}kernels/${id}`, {}, settings);
      const figures = answer?.ok ? await answer.json() : null; // not ok: the kernel has just ended
      if (activeKernel() === id) {
        draw(id, figures);
      }
    };
    const frequency = { interval: POLL_MS, backoff: true, max: 30 * POLL_MS };
    const poll = new Poll({ name: 'rbkit:kernel', factory: update, frequency, standby: 'when-hidden' });
    shell.currentChanged?.connect(() => void poll.refresh());
    draw(null, null);
    statusBar.registerStatusItem('rbkit:kernel', { item, align: 'left', rank: 100 });
  }

  async function makePlugin() {
    const { ILabShell, ILayoutRestorer } = await load('@jupyterlab/application');
    const { ICommandPalette, MainAreaWidget, WidgetTracker } = await load('@jupyterlab/apputils');
    const { ILauncher } = await load('@jupyterlab/launcher');
    const { ServerConnection } = await load('@jupyterlab/services');
    const { IStatusBar } = await load('@jupyterlab/statusbar');
    const { ITranslator, nullTranslator } = await load('@jupyterlab/translation');
    const { IFrame, LabIcon } = await load('@jupyterlab/ui-components');

    const icon = new LabIcon({ name: 'rbkit:dashboard', svgstr: ICON });

    function makeTab(url, label, id) {
      const content = new IFrame({
        sandbox: ['allow-same-origin', 'allow-scripts', 'allow-forms', 'allow-downloads', 'allow-popups']
      });
      content.url = url;
      content.title.icon = icon;
      content.title.label = label;
      content.id = id;
      return new MainAreaWidget({ content });
    }

    /** Return the policies of the dashboard's page; null if the server extension is not there. */
    async function findPolicies(url, settings) {
      try {
        const answer = await ServerConnection.makeRequest(url, { method: 'HEAD' }, settings);
        return answer.ok ? answer.headers.get('Content-Security-Policy') ?? '' : null;
      } catch {
        return null; // the server is unreachable, which JupyterLab reports
      }
    }

    async function activate(app, labShell, palette, launcher, restorer, translator, statusBar) {
      const settings = app.serviceManager.serverSettings;
      const url = new URL(settings.baseUrl + 'rbkit/', location.href).href;
      const trans = (translator ?? nullTranslator).load('tornado_rbkit');
      const label = trans.__('rbkit dashboard');
      const tracker = new WidgetTracker({ namespace: 'rbkit' });
      const tabs = new Map(); // by target, '' for the dashboard of all

      const policies = await findPolicies(url, settings);
      if (policies === null) {
        return;
      }
      const canFrame = labShell && mayFrame(policies);

      async function openTab(target, address) {
        if (!tabs.has(target)) {
          const tab = makeTab(address, target ? `rbkit: ${target}` : label, `rbkit-dashboard-${target}`);
          tabs.set(target, tab);
          tab.disposed.connect(() => tabs.delete(target));
          labShell.add(tab, 'main');
          await tracker.add(tab);
        }
        labShell.activateById(tabs.get(target).id);
      }
      const targetOf = widget => [...tabs].find(([, tab]) => tab === widget)?.[0] ?? '';
      const open = target => void app.commands.execute(OPEN, { target });

      app.commands.addCommand(OPEN, {
        label,
        caption: trans.__('Watch and steer the profiled processes of this machine'),
        icon: args => (args.isPalette ? null : icon),
        execute: async ({ target = '' }) => {
          const address = target ? `${url}?target=${encodeURIComponent(target)}` : url;
          if (canFrame) {
            await openTab(target, address);
          } else {
            window.open(address, '_blank', 'noopener'); // Jupyter Notebook has no tabs; JupyterHub forbids frames
          }
        }
      });
      palette?.addItem({ command: OPEN, category: 'rbkit', args: { isPalette: true } });
      launcher?.add({ command: OPEN, category: CATEGORY });
      if (canFrame) {
        followLinks(url, open);
        const args = widget => ({ target: targetOf(widget) });
        void restorer?.restore(tracker, { command: OPEN, args, name: widget => targetOf(widget) || 'dashboard' });
      }
      if (statusBar) {
        await addItem({ statusBar, shell: app.shell, url, settings, trans, open });
      }
    }

    const optional = [ILabShell, ICommandPalette, ILauncher, ILayoutRestorer, ITranslator, IStatusBar];
    return {
      id: 'tornado_rbkit:dashboard',
      description: 'Opens the rbkit dashboard, and shows the figures of the active kernel in the status bar.',
      autoStart: true,
      optional: optional.filter(Boolean), // the status bar is last, because it may be missing
      activate
    };
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.tornado_rbkit = {
    init: scope => {
      shared = scope;
    },
    get: async () => {
      const plugin = await makePlugin();
      return () => ({ __esModule: true, default: plugin });
    }
  };
})();
