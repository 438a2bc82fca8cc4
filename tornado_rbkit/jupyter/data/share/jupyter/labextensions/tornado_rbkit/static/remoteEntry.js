// The JupyterLab extension, as a module federation container written by hand: init() is handed what JupyterLab
// shares, get() returns the plugin (https://webpack.js.org/concepts/module-federation/). There is no build step.
(() => {
  'use strict';

  const COMMAND = 'rbkit:open';
  const LABEL = 'rbkit dashboard';
  const CATEGORY = 'Other';
  const ICON = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">
    <g class="jp-icon3" fill="#616161">
      <path d="M3 18h18v3H3zM5 13h14v3H5zM5 8h8v3H5zM15 8h3v3h-3zM7 3h4v3H7z"/>
    </g>
  </svg>`;

  let shared;

  async function load(name) {
    const [version] = Object.values(shared[name]);
    return (await version.get())();
  }

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

  async function makePlugin() {
    const { ILabShell, ILayoutRestorer } = await load('@jupyterlab/application');
    const { ICommandPalette, MainAreaWidget, WidgetTracker } = await load('@jupyterlab/apputils');
    const { ILauncher } = await load('@jupyterlab/launcher');
    const { ServerConnection } = await load('@jupyterlab/services');
    const { IFrame, LabIcon } = await load('@jupyterlab/ui-components');

    const icon = new LabIcon({ name: 'rbkit:dashboard', svgstr: ICON });

    function makeTab(url) {
      const content = new IFrame({
        sandbox: ['allow-same-origin', 'allow-scripts', 'allow-forms', 'allow-downloads', 'allow-popups']
      });
      content.url = url;
      content.title.icon = icon;
      content.title.label = LABEL;
      content.id = 'rbkit-dashboard';
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

    return {
      id: 'tornado_rbkit:dashboard',
      description: 'Opens the rbkit dashboard.',
      autoStart: true,
      optional: [ILabShell, ICommandPalette, ILauncher, ILayoutRestorer],
      activate: async (app, labShell, palette, launcher, restorer) => {
        const settings = app.serviceManager.serverSettings;
        const url = settings.baseUrl + 'rbkit/';
        const tracker = new WidgetTracker({ namespace: 'rbkit' });
        let tab;

        const policies = await findPolicies(url, settings);
        if (policies === null) {
          return;
        }
        const canFrame = labShell && mayFrame(policies);

        app.commands.addCommand(COMMAND, {
          label: LABEL,
          caption: 'Watch and steer the profiled processes of this machine',
          icon: args => (args.isPalette ? null : icon),
          execute: async () => {
            if (!canFrame) {
              window.open(url, '_blank', 'noopener'); // Jupyter Notebook has no tabs; JupyterHub forbids frames
              return;
            }
            if (!tab || tab.isDisposed) {
              tab = makeTab(url);
              labShell.add(tab, 'main');
              await tracker.add(tab);
            }
            labShell.activateById(tab.id);
          }
        });
        if (palette) {
          palette.addItem({ command: COMMAND, category: 'rbkit', args: { isPalette: true } });
        }
        if (launcher) {
          launcher.add({ command: COMMAND, category: CATEGORY });
        }
        if (restorer && canFrame) {
          void restorer.restore(tracker, { command: COMMAND, name: () => 'dashboard' });
        }
      }
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
