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

  async function makePlugin() {
    const { ILabShell, ILayoutRestorer } = await load('@jupyterlab/application');
    const { ICommandPalette, MainAreaWidget, WidgetTracker } = await load('@jupyterlab/apputils');
    const { ILauncher } = await load('@jupyterlab/launcher');
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

    return {
      id: 'tornado_rbkit:dashboard',
      description: 'Opens the rbkit dashboard.',
      autoStart: true,
      optional: [ILabShell, ICommandPalette, ILauncher, ILayoutRestorer],
      activate: (app, labShell, palette, launcher, restorer) => {
        const url = app.serviceManager.serverSettings.baseUrl + 'rbkit/';
        const tracker = new WidgetTracker({ namespace: 'rbkit' });
        let tab;

        app.commands.addCommand(COMMAND, {
          label: LABEL,
          caption: 'Watch and steer the profiled processes of this machine',
          icon: args => (args.isPalette ? null : icon),
          execute: async () => {
            if (!labShell) {
              window.open(url, '_blank', 'noopener'); // Jupyter Notebook has no tabs
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
        if (restorer) {
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
